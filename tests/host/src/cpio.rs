//! cpio archives of the format newc, as an archiver writes them.

/// An archive that grows.
#[derive(Clone, Debug, Default)]
pub struct Cpio(Vec<u8>);

impl Cpio {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a file, a directory or a link more, as `mode` says (`st_mode`).
    #[must_use]
    pub fn entry(mut self, name: &str, mode: u32, data: &[u8]) -> Self {
        let inode = self.0.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0]
            .map(|field| format!("{field:08x}"));
        self.0.extend(format!("070701{}{name}\0", fields.concat()).bytes());
        self.pad();
        self.0.extend(data);
        self.pad();
        self
    }

    /// With an executable file more.
    #[must_use]
    pub fn program(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, 0o100_755, data)
    }

    /// With a symbolic link more.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, 0o120_777, target.as_bytes())
    }

    /// The archive with its trailer.
    pub fn bytes(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"").0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
