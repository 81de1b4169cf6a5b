//! Address space identifiers: which one an mm's TLB entries carry, and when another mm may have it.
//!
//! ```text
//!            switch_to: the mm has an ASID of this generation ──▶ one compare-and-swap, no lock
//!                 │ it has none, or this CPU was swept (lock)
//!                 ▼
//!   free ──▶ used by one mm ──▶ release: TLBI ASIDE1IS, completed ──▶ free
//!     ▲           │
//!     │           │ none is free: rollover
//!     └───────────┴─ sweep the CPUs; ASIDs that run on one stay used; TLBI VMALLE1IS, completed
//! ```
//!
//! There are fewer ASIDs than there may be mms. When none is free a new *generation* begins: every mm whose ASID
//! is of an older one has lost it, and gets another when it is next switched to; only those that a CPU runs keep
//! theirs. ASID 0 belongs to the tables that translate nothing, [`EFI_ASID`] to the firmware's.
//!
//! # What must hold
//! While TTBR0 of some CPU names an mm and an ASID, no TLB holds an entry with this ASID of another mm. Entries
//! may be made at any time by a CPU whose TTBR0 names the ASID, and go by completed flushes only. So:
//!
//! - *An ASID that a TTBR0 holds is used.* Each CPU has an active slot that names it. The slot names the next mm
//!   before TTBR0 does, and the previous one is out of TTBR0 before the slot changes: hence the rule that
//!   [`AsidAllocator::switch_to`] and [`AsidAllocator::leave`] are called while TTBR0 translates nothing. Without
//!   it a rollover between slot and TTBR0 would miss an mm whose entries the CPU may still make.
//! - *A slot may name more than what runs.* Where an mm was switched away and nothing came after it, a rollover
//!   keeps its ASID needlessly; until the mm is released that costs one ASID for each CPU, no more.
//! - *An mm has one ASID*, on however many CPUs its threads run: it is changed under the lock only, and only where
//!   it is of an old generation and no CPU was running it at the last sweep.
//!
//! # The short way, without the lock
//! A slot is zeroed by a sweep, under the lock, and gets another value after that only by the long way, under the
//! lock; the short way replaces a value by another of the same generation. So a slot that is not zero is of the
//! current generation, whenever it is looked at. If the compare-and-swap of the short way succeeds, then at this
//! moment the mm's ASID, being of the same generation, is its own, and the next sweep will find it in the slot. If
//! a sweep comes first, it fails. No ordering is needed for that: it is about one atomic value.
//!
//! # Flushes of an mm while its ASID changes
//! Who changes descriptors flushes them with the ASID that [`Context::asid`] tells *after* [`Mmu::publish`].
//! If a CPU that switches to the mm stores its new ASID later than it is read here, its walks come later
//! still, since [`Mmu::publish`] is between its store and its write of TTBR0; they see the changed descriptors, and
//! there is nothing to flush. If it stores it earlier, it is what is read. By whatever older ASID a flush is
//! issued, the mm's entries with that one are gone by it or by the rollover that took it away; a flush too many of
//! another mm's entries costs time only.

use arch::Mmu;
use arch::sync::{AtomicU64, Ordering};
use arch::tlbi::{Asid, Tlbi};

use crate::sync::Mutex;

/// The ASID of the firmware's address space. No other gets it.
pub const EFI_ASID: Asid = Asid::new(1);

/// ASIDs from 0 on that are never assigned.
const FIXED: u32 = 2;

/// A generation, in bits 63:16, and an ASID, 0 for none.
///
/// Generations begin with 1 and do not wrap: a rollover a microsecond would take nine years.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tag(u64);

impl Tag {
    /// In a [`Context`]: no ASID yet. In an active slot: swept, take the lock.
    const NONE: Self = Self(0);

    const fn new(generation: u64, asid: u16) -> Self {
        Self(generation << 16 | asid as u64)
    }

    const fn generation(self) -> u64 {
        self.0 >> 16
    }

    const fn asid(self) -> u16 {
        self.0 as u16
    }

    /// The same generation without an ASID: the CPU runs no mm.
    const fn idle(self) -> Self {
        Self::new(self.generation(), 0)
    }
}

/// The ASID of one mm, and the generation that it is of.
#[derive(Debug)]
pub struct Context(AtomicU64);

impl Context {
    /// That of an mm that was never switched to.
    #[expect(clippy::new_without_default, reason = "a context is no plain number")]
    pub fn new() -> Self {
        Self(AtomicU64::new(Tag::NONE.0))
    }

    /// The ASID by which to flush changed descriptors, read after [`Mmu::publish`] has made them visible. `None` where
    /// no TLB can hold an entry: the mm was never switched to, or released since.
    pub fn asid(&self) -> Option<Asid> {
        let tag = self.load();
        if tag == Tag::NONE { None } else { Some(Asid::new(tag.asid())) }
    }

    fn load(&self) -> Tag {
        // Acquire: pairs with `store`; a thread of the mm on a second CPU comes after what the first one did.
        Tag(self.0.load(Ordering::Acquire))
    }

    fn store(&self, tag: Tag) {
        self.0.store(tag.0, Ordering::Release);
    }
}

/// What a CPU's TTBR0 holds, or soon will: an mm's tag, an idle one, or [`Tag::NONE`] after a sweep. Written by its
/// own CPU at each switch, hence a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Active(AtomicU64);

/// Gives ASIDs to the mms of a machine with up to `CPUS` CPUs, numbered from 0.
///
/// Its lock is taken by the scheduler: whoever calls one of its functions has interrupts masked.
#[derive(Debug)]
pub struct AsidAllocator<'b, const CPUS: usize> {
    active: [Active; CPUS],
    state: Mutex<State<'b, CPUS>>,
}

/// What the lock protects, beside the sweeps and the contexts.
#[derive(Debug)]
struct State<'b, const CPUS: usize> {
    generation: u64,
    asids: u32,
    /// A bit for each ASID: it is fixed, or an mm's of this generation, or one that was kept by the last rollover.
    used: &'b mut [u64],
    /// Where the last free bit was found.
    next: usize,
    /// What each CPU ran at the last sweep, or at an earlier one if it has not switched since; or an idle tag. By it an
    /// mm finds the ASID that was kept for it.
    kept: [Tag; CPUS],
}

impl<'b, const CPUS: usize> AsidAllocator<'b, CPUS> {
    /// Words of the bitmap for `asids` ASIDs.
    pub const fn words(asids: u32) -> usize {
        asids.div_ceil(u64::BITS) as usize
    }

    /// An allocator of the ASIDs below `asids`, with a bitmap in `words`, whatever is in it.
    ///
    /// `asids` is 2^[`asid_bits`](arch::features::CpuFeatures::asid_bits) of what all CPUs have in common, with
    /// TCR_EL1.AS set accordingly; it may be less.
    ///
    /// # Panics
    /// Where there are more than 2^16 ASIDs, or fewer than one for each CPU beside the two that are never assigned; or
    /// where the bitmap has fewer than [`Self::words`] words.
    pub fn new(asids: u32, words: &'b mut [u64]) -> Self {
        assert!(asids <= 1 << 16, "{asids} ASIDs are more than 16 bits");
        assert!(asids as usize >= FIXED as usize + CPUS, "{asids} ASIDs are too few for {CPUS} CPUs");
        assert!(words.len() >= Self::words(asids), "a bitmap too small for {asids} ASIDs");
        let used = &mut words[..Self::words(asids)];
        let mut state = State { generation: 1, asids, used, next: 0, kept: [Tag::NONE; CPUS] };
        state.clear();
        let active = core::array::from_fn(|_| Active(AtomicU64::new(Tag::NONE.0)));
        Self { active, state: Mutex::new(state) }
    }

    /// The current generation: 1, and one more for each rollover.
    pub fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// To be called by CPU `cpu` when it is going to load the mm of `context` into TTBR0, which must translate nothing
    /// since before the call (an empty table and ASID 0 were loaded, then ISB). Returns the ASID to be loaded
    /// with it; the mm keeps it for as long as the CPU calls neither this nor [`Self::leave`].
    ///
    /// # Panics
    /// Where `cpu` is not below `CPUS`.
    #[inline]
    pub fn switch_to<M: Mmu>(&self, mmu: &M, cpu: usize, context: &Context) -> Asid {
        let active = &self.active[cpu].0;
        let (old, tag) = (Tag(active.load(Ordering::Relaxed)), context.load());
        // Release: pairs with the sweep. What this CPU did with TTBR0 before comes before.
        let short = old != Tag::NONE
            && old.generation() == tag.generation()
            && active.compare_exchange(old.0, tag.0, Ordering::Release, Ordering::Relaxed).is_ok();
        Asid::new(if short { tag } else { self.switch_slowly(mmu, cpu, context) }.asid())
    }

    #[cold]
    fn switch_slowly<M: Mmu>(&self, mmu: &M, cpu: usize, context: &Context) -> Tag {
        let mut state = self.state.lock();
        let mut tag = context.load();
        if tag.generation() != state.generation {
            let renewed = Tag::new(state.generation, tag.asid());
            tag = if state.replace_kept(tag, renewed) {
                renewed
            } else {
                let asid = state.take().unwrap_or_else(|| {
                    self.rollover(mmu, cpu, &mut state);
                    state.take().expect("a rollover keeps at most one ASID for each other CPU")
                });
                Tag::new(state.generation, asid)
            };
            context.store(tag);
            // Before TTBR0 is written: who changes a descriptor and reads an older tag knows that no walk comes before.
            mmu.publish();
        }
        self.active[cpu].0.store(tag.0, Ordering::Release);
        tag
    }

    /// To be called by CPU `cpu` after it has loaded into TTBR0 what is no mm of this allocator (and ISB): the mm that it
    /// ran may be released.
    ///
    /// # Panics
    /// Where `cpu` is not below `CPUS`.
    pub fn leave(&self, cpu: usize) {
        let active = &self.active[cpu].0;
        let old = Tag(active.load(Ordering::Relaxed));
        // As in `switch_to`: if it is not zero, only a sweep can come between.
        if old == Tag::NONE
            || active.compare_exchange(old.0, old.idle().0, Ordering::Release, Ordering::Relaxed).is_err()
        {
            let state = self.state.lock();
            // What was kept for the mm at the sweep stays kept: its threads may run elsewhere, or it comes back.
            active.store(Tag::new(state.generation, 0).0, Ordering::Release);
        }
    }

    /// Takes the ASID of an mm that will not be run any more, and makes it free after its entries are flushed. The flush
    /// is complete on return. Nothing happens where it has none.
    ///
    /// # Panics
    /// Where a CPU runs the mm, or did and has neither switched nor left since.
    pub fn release<M: Mmu>(&self, mmu: &M, context: &Context) {
        let mut state = self.state.lock();
        let tag = context.load();
        if tag == Tag::NONE {
            return;
        }
        for (cpu, active) in self.active.iter().enumerate() {
            let running = match Tag(active.0.load(Ordering::Acquire)) {
                Tag::NONE => state.kept[cpu],
                running => running,
            };
            assert!(running != tag, "ASID {} is released while CPU {cpu} runs it", tag.asid());
        }
        // Else a rollover took it, and flushed it too.
        if state.replace_kept(tag, Tag::NONE) || tag.generation() == state.generation {
            mmu.publish();
            mmu.invalidate(Tlbi::Asid(Asid::new(tag.asid())));
            mmu.complete();
            state.free(tag.asid());
        }
        context.store(Tag::NONE);
    }

    /// A new generation, in which all ASIDs are free but those that other CPUs run. This CPU runs none.
    fn rollover<M: Mmu>(&self, mmu: &M, this_cpu: usize, state: &mut State<'b, CPUS>) {
        state.generation += 1;
        state.clear();
        for (cpu, active) in self.active.iter().enumerate() {
            // From here on, this CPU's next switch takes the lock.
            let tag = Tag(active.0.swap(Tag::NONE.0, Ordering::AcqRel));
            if cpu == this_cpu {
                state.kept[cpu] = Tag::NONE;
            } else if tag != Tag::NONE {
                state.kept[cpu] = tag;
            }
            // Else it has not switched since an earlier sweep, and still runs what it ran then. An idle one marks 0.
            state.mark(state.kept[cpu].asid());
        }
        // The sweep comes before the flush: what runs unseen after it has an ASID that stays used.
        mmu.publish();
        mmu.invalidate(Tlbi::All);
        mmu.complete();
    }
}

impl<const CPUS: usize> State<'_, CPUS> {
    /// Makes all ASIDs free but the fixed ones, and those that do not exist.
    fn clear(&mut self) {
        self.used.fill(0);
        (0..FIXED).for_each(|asid| self.mark(asid as u16));
        let beyond = self.asids % u64::BITS;
        if beyond != 0 {
            self.used[(self.asids / u64::BITS) as usize] |= u64::MAX << beyond;
        }
    }

    fn mark(&mut self, asid: u16) {
        self.used[usize::from(asid) / 64] |= 1 << (asid % 64);
    }

    fn free(&mut self, asid: u16) {
        self.used[usize::from(asid) / 64] &= !(1 << (asid % 64));
    }

    /// A free ASID, which is used then.
    fn take(&mut self) -> Option<u16> {
        let words = self.used.len();
        let word =
            (0..words).map(|step| (self.next + step) % words).find(|&word| self.used[word] != u64::MAX)?;
        self.next = word;
        let asid = word as u32 * u64::BITS + self.used[word].trailing_ones();
        self.mark(asid as u16);
        Some(asid as u16)
    }

    /// Whether an ASID was kept for the mm with this tag in the last rollover. Where it was, the tag is replaced
    /// wherever it was noted: the next rollover may keep it again for a CPU that does not switch until then.
    fn replace_kept(&mut self, tag: Tag, by: Tag) -> bool {
        let mut found = false;
        for kept in self.kept.iter_mut().filter(|kept| tag != Tag::NONE && **kept == tag) {
            *kept = by;
            found = true;
        }
        found
    }
}
