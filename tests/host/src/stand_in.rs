//! A kernel of a few instructions that prints a text and ends: it says whatever a test wants said.

/// How a stand-in ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With this exit status.
    Exit(u8),
    /// Never.
    Hang,
}

/// The flat binary of a kernel that prints `text` by semihosting and then ends.
///
/// Its code is position-independent and needs no stack; semihosting reads the text at its physical
/// address, since the MMU is off.
///
/// # Panics
/// Where the text holds a NUL, which would end it.
pub fn stand_in(text: &str, end: End) -> Vec<u8> {
    const SYS_WRITE0: u32 = 0x04;
    const SYS_EXIT: u32 = 0x18;
    const APPLICATION_EXIT: u64 = 0x20026;
    const CODE_BYTES: u32 = 32;
    const BLOCK_BYTES: u32 = 16;
    let adr_x1 = |from: u32, to: u32| 0x1000_0001 | ((to - from) / 4) << 5;
    let mov_w0 = |value: u32| 0x5280_0000 | value << 5;
    let hlt_semihosting = 0xd45e_0000;
    let branch_to_self = 0x1400_0000;

    assert!(!text.contains('\0'), "semihosting ends a text at its first NUL");
    let code: [u32; 8] = [
        adr_x1(0, CODE_BYTES + BLOCK_BYTES),
        mov_w0(SYS_WRITE0),
        hlt_semihosting,
        if end == End::Hang { branch_to_self } else { adr_x1(12, CODE_BYTES) },
        mov_w0(SYS_EXIT),
        hlt_semihosting,
        branch_to_self,
        0,
    ];
    let status = match end {
        End::Exit(status) => u64::from(status),
        End::Hang => 0,
    };
    let mut image: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend(APPLICATION_EXIT.to_le_bytes());
    image.extend(status.to_le_bytes());
    image.extend(text.as_bytes());
    image.push(0);
    image
}
