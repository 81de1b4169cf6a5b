//! The machine of the scenarios: a user's address space in TTBR0, used by accesses as EL0 makes them, by this CPU and, where
//! there is one, by another that waits for requests.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::aarch64::daif;
use arch::aarch64::hardware::{Hardware, LinearMap, linear};
use arch::aarch64::probe;
use arch::{Granule, PhysAddr, PteValue, VirtAddr};
use mm::frame::{Folio, Frame, FrameMap, MAX_ORDER, Zone};
use mm::ptep::LocklessGuard;
use mm::{Mm, TableAlloc, VA_BITS};
use scenarios::contpte::fault::{Resolution, resolve};
use scenarios::contpte::{Access, Fault, Machine};
use spin::Mutex;

use super::mapping::Scratch;
use crate::smp::JoinHandle;
use crate::user::{self, Loaded, UserMm};
use crate::{cpu, memory, smp, vm};

/// The CPU that accesses are made on beside the first.
const OTHER: usize = 1;
/// Faults of one access in a row: a machine that does not get any further would go on for ever.
const MAX_FAULTS: usize = 100_000;
/// How often a change is made while another CPU uses what changes.
const ROUNDS: usize = 10;

/// Faults that were resolved.
#[derive(Default)]
pub(super) struct Faults {
    /// By a change of an entry.
    changed: AtomicU64,
    /// By waiting for the lock, or for nothing.
    spurious: AtomicU64,
}

impl Faults {
    /// Faults that found the entry right when they had the lock.
    pub(super) fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }
}

/// What the other CPU is asked for.
enum Request {
    /// These accesses, once.
    Access(Vec<(VirtAddr, Access)>),
    /// To write to these addresses and read them until [`Link::enough`].
    Use(Vec<VirtAddr>),
    /// To unload the address space.
    Leave,
}

/// Where one CPU puts what another one waits for.
struct Mailbox<T> {
    /// Who waits looks here, and leaves the lock alone.
    full: AtomicBool,
    value: Mutex<Option<T>>,
}

impl<T> Mailbox<T> {
    const fn new() -> Self {
        Self { full: AtomicBool::new(false), value: Mutex::new(None) }
    }

    fn put(&self, value: T) {
        *self.value.lock() = Some(value);
        self.full.store(true, Ordering::Release);
    }

    fn take(&self) -> T {
        while !self.full.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        self.full.store(false, Ordering::Relaxed);
        self.value.lock().take().expect("what makes it full is a value")
    }
}

/// Between this CPU and the other.
struct Link {
    request: Mailbox<Request>,
    reply: Mailbox<Vec<Result<u8, Fault>>>,
    enough: AtomicBool,
}

/// A user's address space, loaded on this CPU and on the other. Nothing may be mapped in it any more when it is dropped.
pub(super) struct UserSpace<const PAGE_SHIFT: u32> {
    pub(super) mm: Arc<UserMm<PAGE_SHIFT>>,
    pub(super) tables: Scratch,
    pub(super) faults: Arc<Faults>,
    frames: &'static FrameMap<'static>,
    loaded: Option<Loaded<UserMm<PAGE_SHIFT>>>,
    other: Option<(Arc<Link>, JoinHandle<()>)>,
}

impl<const PAGE_SHIFT: u32> UserSpace<PAGE_SHIFT> {
    /// One whose frames come from `frames`, and are numbered by its granule.
    pub(super) fn new(frames: &'static FrameMap<'static>) -> Self {
        let granule = Granule::of_page_shift(PAGE_SHIFT);
        let tables = Scratch::new(granule);
        let root = tables.alloc_table(granule.start_level(VA_BITS)).expect("memory for a root table");
        // SAFETY: its tables are pages of the allocator, which are in the linear map.
        let hardware = Hardware(unsafe { LinearMap::new() });
        let mm = Arc::new(Mm::new_user(hardware, root, frames));
        let faults = Arc::new(Faults::default());
        // SAFETY: what is mapped are frames of the test, which it uses as memory only.
        let loaded = Some(unsafe { Loaded::new(&mm) });
        let other = (cpu::count() > OTHER).then(|| {
            let link = Arc::new(Link {
                request: Mailbox::new(),
                reply: Mailbox::new(),
                enough: AtomicBool::new(false),
            });
            let (mm, faults, theirs) = (mm.clone(), faults.clone(), link.clone());
            let serve = smp::spawn_on(OTHER, move || serve(&mm, &faults, &theirs));
            (link, serve.expect("the CPU waits"))
        });
        Self { mm, tables, faults, frames, loaded, other }
    }

    /// Calls `act` while the other CPU, if there is one, uses these addresses.
    pub(super) fn used_meanwhile(&self, addresses: &[VirtAddr], act: &mut dyn FnMut()) {
        let Some((link, _)) = &self.other else { return act() };
        link.enough.store(false, Ordering::Relaxed);
        link.request.put(Request::Use(addresses.to_vec()));
        act();
        link.enough.store(true, Ordering::Relaxed);
        link.reply.take();
    }
}

impl<const PAGE_SHIFT: u32> Drop for UserSpace<PAGE_SHIFT> {
    fn drop(&mut self) {
        if let Some((link, serve)) = self.other.take() {
            link.request.put(Request::Leave);
            serve.join();
        }
        self.loaded = None;
        user::release(&*self.mm);
    }
}

/// What the other CPU does until it is asked to leave. It keeps what its TLB has meanwhile.
fn serve<const PAGE_SHIFT: u32>(mm: &Arc<UserMm<PAGE_SHIFT>>, faults: &Faults, link: &Link) {
    // SAFETY: as for the first CPU.
    let _loaded = unsafe { Loaded::new(mm) };
    loop {
        let results = match link.request.take() {
            Request::Access(accesses) => {
                accesses.into_iter().map(|(va, access)| perform(mm, va, access, faults)).collect()
            }
            Request::Use(addresses) => {
                let mut round = 0_u8;
                while !link.enough.load(Ordering::Relaxed) {
                    round = round.wrapping_add(1);
                    for (place, &va) in (0_u8..=u8::MAX).cycle().zip(&addresses) {
                        let value = round ^ place;
                        for access in [Access::Write(value), Access::Read] {
                            let result = perform(mm, va, access, faults);
                            assert_eq!(result, Ok(value), "{access:?} of {va} in round {round}");
                        }
                    }
                }
                Vec::new()
            }
            Request::Leave => return,
        };
        link.reply.put(results);
    }
}

/// Makes an access on this CPU, resolving faults as they come.
fn perform<const PAGE_SHIFT: u32>(
    mm: &UserMm<PAGE_SHIFT>,
    va: VirtAddr,
    access: Access,
    faults: &Faults,
) -> Result<u8, Fault> {
    for _ in 0..MAX_FAULTS {
        // SAFETY: what is mapped there are the test's own frames, which nobody refers to; what it executes is an `svc`.
        let result = unsafe {
            match access {
                Access::Read => probe::load_user(va),
                Access::Write(value) => probe::store_user(va, value).map(|()| value),
                Access::Execute => probe::execute_user(va).map(|number| number as u8),
            }
        };
        let fault = match result {
            Ok(value) => return Ok(value),
            Err(fault) => fault,
        };
        match resolve(mm, va, access) {
            Resolution::Changed => _ = faults.changed.fetch_add(1, Ordering::Relaxed),
            Resolution::Spurious => _ = faults.spurious.fetch_add(1, Ordering::Relaxed),
            Resolution::Refused => return Err(kind(fault)),
        }
    }
    panic!("{access:?} of {va} faults for ever");
}

fn kind(fault: probe::Fault) -> Fault {
    match fault.esr.abort() {
        Some(abort) if abort.is_translation_fault() => Fault::Translation,
        Some(abort) if abort.is_access_flag_fault() => Fault::AccessFlag,
        Some(abort) if abort.is_permission_fault() => Fault::Permission,
        _ => panic!("{} at {}", fault.esr, fault.far),
    }
}

/// A byte of the scenarios' memory, by the linear map.
fn byte(pa: PhysAddr) -> *mut u8 {
    linear(pa).get() as *mut u8
}

impl<const PAGE_SHIFT: u32> Machine<'static> for UserSpace<PAGE_SHIFT> {
    type M = Hardware<LinearMap, PAGE_SHIFT>;
    type Operation = ();

    fn mm(&self) -> &Mm<'static, Self::M> {
        &self.mm
    }

    fn frames(&self) -> &'static FrameMap<'static> {
        self.frames
    }

    fn tables(&self) -> &dyn TableAlloc {
        &self.tables
    }

    fn cpus(&self) -> usize {
        1 + usize::from(self.other.is_some())
    }

    fn byte(&self, pa: PhysAddr) -> u8 {
        // SAFETY: a byte of a frame that the scenario has allocated; no reference refers to it.
        unsafe { byte(pa).read_volatile() }
    }

    fn set_byte(&self, pa: PhysAddr, value: u8) {
        // SAFETY: as above.
        unsafe { byte(pa).write_volatile(value) }
    }

    fn access(&self, cpu: usize, accesses: &[(VirtAddr, Access)]) -> Vec<Result<u8, Fault>> {
        match &self.other {
            Some((link, _)) if cpu == OTHER => {
                link.request.put(Request::Access(accesses.to_vec()));
                link.reply.take()
            }
            _ => accesses.iter().map(|&(va, access)| perform(&self.mm, va, access, &self.faults)).collect(),
        }
    }

    fn resolved(&self) -> u64 {
        self.faults.changed.load(Ordering::Relaxed)
    }

    fn while_used(&self, addresses: &[VirtAddr], act: &mut dyn FnMut()) {
        self.used_meanwhile(addresses, &mut || (0..ROUNDS).for_each(|_| act()));
    }

    fn masked(&self, act: &mut dyn FnMut(&LocklessGuard)) {
        daif::masked(|| act(&LocklessGuard::interrupts_masked()));
    }

    /// What may be seen in between can't be known here.
    fn begin(&self, _: &[(VirtAddr, PteValue)]) {}

    fn end(&self, (): ()) {}

    fn check(&self) {}
}

/// Calls `run` with a frame map in pages of another granule, over this many folios of the kernel's largest order.
///
/// # Panics
/// Where `run` does not give all frames back, or there is not enough memory.
///
/// # Safety
/// `run` must keep nothing that refers to the map.
pub(super) unsafe fn with_frames_of(
    granule: Granule,
    folios: usize,
    run: impl FnOnce(&'static FrameMap<'static>),
) {
    let mut memory: Vec<Folio<'static>> =
        (0..folios).map(|_| memory::frames().alloc(MAX_ORDER).expect("memory for frames")).collect();
    memory.sort_by_key(|folio| folio.head());
    let frames = (vm::PAGE << MAX_ORDER) / granule.page_size();
    let records: Vec<*mut [Frame]> = memory
        .iter()
        .map(|_| Box::into_raw((0..frames).map(|_| Frame::new()).collect::<Box<[Frame]>>()))
        .collect();
    let zones: Box<[Zone<'static>]> = memory
        .iter()
        .zip(&records)
        .map(|(folio, &records)| {
            let first = folio.head().addr(vm::GRANULE).pfn(granule);
            // SAFETY: the records are freed below, when nothing refers to them.
            Zone::new(first, unsafe { &*records })
        })
        .collect();
    let zones = Box::into_raw(zones);
    // SAFETY: as for the records.
    let map = Box::into_raw(Box::new(FrameMap::new(unsafe { &*zones }, None)));
    // SAFETY: as for the records.
    let frames = unsafe { &*map };
    frames.zones().iter().for_each(|zone| frames.release(zone.range()));
    let before = frames.counts();
    run(frames);
    assert_eq!(frames.counts(), before, "frames leaked, or were not merged");
    // SAFETY: made by `Box::into_raw` above. The caller vouches that the references to them are gone; the map has those to
    // the zones, and these the ones to the records.
    unsafe {
        drop(Box::from_raw(map));
        drop(Box::from_raw(zones));
        records.into_iter().for_each(|records| drop(Box::from_raw(records)));
    }
}
