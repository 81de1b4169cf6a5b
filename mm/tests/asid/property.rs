//! Random histories of several CPUs and mms, step by step, judged after each; and faults that this must find.

use arch::Mmu;
use arch::tlbi::Asid;
use pleat_mm::asid::{AsidAllocator, Context};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::machine::{FAULTS, Fault, Machine};

const MMS: usize = 5;

/// The steps of a scheduler. Those of a switch come apart, so that others come between.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    /// TTBR0 translates nothing any more.
    Vacate { cpu: usize },
    /// The allocator is asked for the mm's ASID.
    Assign { cpu: usize, mm: usize },
    /// TTBR0 gets what was assigned.
    Load { cpu: usize },
    /// The three of them.
    Switch { cpu: usize, mm: usize },
    /// The CPU has no mm from now on.
    Leave { cpu: usize },
    /// Nobody runs the mm any more, and it is released; another takes its place.
    Exit { mm: usize },
    /// Descriptors of the mm are changed and published, and the ASID is read by which to flush them.
    Change { mm: usize },
    /// They are flushed.
    Flush { mm: usize },
}

fn step(cpus: usize) -> impl Strategy<Value = Step> {
    let (cpu, mm) = (move || 0..cpus, || 0..MMS);
    prop_oneof![
        2 => cpu().prop_map(|cpu| Step::Vacate { cpu }),
        4 => (cpu(), mm()).prop_map(|(cpu, mm)| Step::Assign { cpu, mm }),
        4 => cpu().prop_map(|cpu| Step::Load { cpu }),
        4 => (cpu(), mm()).prop_map(|(cpu, mm)| Step::Switch { cpu, mm }),
        1 => cpu().prop_map(|cpu| Step::Leave { cpu }),
        1 => mm().prop_map(|mm| Step::Exit { mm }),
        1 => mm().prop_map(|mm| Step::Change { mm }),
        1 => mm().prop_map(|mm| Step::Flush { mm }),
    ]
}

/// An mm, or one after another in the same place.
struct Process {
    number: usize,
    /// One for all CPUs, unless that is the fault.
    contexts: Vec<Context>,
    /// What [`Step::Change`] leaves to be flushed: the version, and the ASID to do it by.
    flush: Option<(u64, Option<Asid>)>,
}

struct World<'a, const CPUS: usize> {
    allocator: AsidAllocator<'a, CPUS>,
    machine: Machine,
    fault: Fault,
    mms: Vec<Process>,
    next: usize,
    /// What was assigned and not loaded yet.
    assigned: [Option<(Asid, usize)>; CPUS],
    /// Which mm the allocator knows each CPU to have, by its place.
    known: [Option<usize>; CPUS],
}

impl<'a, const CPUS: usize> World<'a, CPUS> {
    fn new(asids: u32, words: &'a mut [u64], fault: Fault) -> Self {
        let mut world = Self {
            allocator: AsidAllocator::new(asids, words),
            machine: Machine::new(CPUS, asids, fault),
            fault,
            mms: vec![],
            next: 0,
            assigned: [None; CPUS],
            known: [None; CPUS],
        };
        world.mms = (0..MMS).map(|_| world.process()).collect();
        world
    }

    fn process(&mut self) -> Process {
        self.next += 1;
        let contexts = if self.fault == Fault::ContextPerCpu { CPUS } else { 1 };
        Process { number: self.next, contexts: (0..contexts).map(|_| Context::new()).collect(), flush: None }
    }

    fn vacate(&mut self, cpu: usize) {
        self.machine.unload(cpu);
        self.assigned[cpu] = None;
    }

    fn leave(&mut self, cpu: usize) {
        self.vacate(cpu);
        self.allocator.leave(cpu);
        self.known[cpu] = None;
    }

    fn assign(&mut self, cpu: usize, mm: usize) {
        if self.fault != Fault::NotVacated {
            self.vacate(cpu);
        }
        if self.fault == Fault::RunningForgotten {
            (0..CPUS).for_each(|cpu| self.allocator.leave(cpu));
        }
        let process = &self.mms[mm];
        let context = &process.contexts[cpu % process.contexts.len()];
        let asid = self.allocator.switch_to(&self.machine, cpu, context);
        self.assigned[cpu] = Some((asid, process.number));
        self.known[cpu] = Some(mm);
    }

    fn load(&mut self, cpu: usize) -> Result<(), String> {
        match self.assigned[cpu].take() {
            Some((asid, mm)) => self.machine.load(cpu, asid, mm),
            None => Ok(()),
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Vacate { cpu } => self.vacate(cpu),
            Step::Assign { cpu, mm } => self.assign(cpu, mm),
            Step::Load { cpu } => self.load(cpu)?,
            Step::Switch { cpu, mm } => {
                self.assign(cpu, mm);
                self.load(cpu)?;
            }
            Step::Leave { cpu } => self.leave(cpu),
            Step::Exit { mm } => {
                for cpu in (0..CPUS).filter(|&cpu| self.known[cpu] == Some(mm)).collect::<Vec<_>>() {
                    self.leave(cpu);
                }
                for context in &self.mms[mm].contexts {
                    self.allocator.release(&self.machine, context);
                }
                self.mms[mm] = self.process();
            }
            Step::Change { mm } => {
                let process = &mut self.mms[mm];
                let early = process.contexts[0].asid();
                let version = self.machine.change(process.number);
                self.machine.publish();
                process.flush = Some((version, process.contexts[0].asid()));
                if self.fault == Fault::AsidReadEarly {
                    process.flush = Some((0, early));
                }
            }
            Step::Flush { mm } => {
                let process = &mut self.mms[mm];
                if let Some((mut version, asid)) = process.flush.take() {
                    if self.fault == Fault::AsidReadEarly {
                        version = self.machine.change(process.number);
                    }
                    self.machine.flush(process.number, version, asid)?;
                }
            }
        }
        self.machine.judge()
    }
}

fn run<const CPUS: usize>(asids: u32, fault: Fault, steps: &[Step]) -> Result<u64, TestCaseError> {
    let mut words = vec![0; AsidAllocator::<CPUS>::words(asids)];
    let mut world = World::<CPUS>::new(asids, &mut words, fault);
    for &step in steps {
        world.apply(step).map_err(TestCaseError::fail)?;
    }
    Ok(world.allocator.generation())
}

proptest! {
    #[test]
    fn no_mm_meets_entries_of_another_with_2_cpus_and_4_asids(steps in prop::collection::vec(step(2), 1..300)) {
        run::<2>(4, Fault::None, &steps)?;
    }

    #[test]
    fn no_mm_meets_entries_of_another_with_3_cpus_and_5_asids(steps in prop::collection::vec(step(3), 1..300)) {
        run::<3>(5, Fault::None, &steps)?;
    }

    #[test]
    fn no_mm_meets_entries_of_another_with_2_cpus_and_6_asids(steps in prop::collection::vec(step(2), 1..300)) {
        run::<2>(6, Fault::None, &steps)?;
    }
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// The same histories, with a fault: they would be no proof if they did not find it.
#[test]
fn each_seeded_fault_is_found() {
    for fault in FAULTS {
        let found = runner(256)
            .run(&prop::collection::vec(step(2), 1..300), |steps| run::<2>(4, fault, &steps).map(|_| ()));
        match found {
            Err(TestError::Fail(reason, steps)) => println!("{fault:?}: {reason}, by {steps:?}"),
            other => panic!("{fault:?} is not found: {other:?}"),
        }
    }
}

#[test]
fn histories_have_rollovers_enough() {
    let rollovers = std::cell::Cell::new(0);
    let strategy = prop::collection::vec(step(2), 300);
    let result = runner(32).run(&strategy, |steps| {
        rollovers.set(rollovers.get() + run::<2>(4, Fault::None, &steps)? - 1);
        Ok(())
    });
    assert_eq!(result, Ok(()));
    assert!(rollovers.get() > 32 * 10, "{} rollovers in 32 histories", rollovers.get());
}
