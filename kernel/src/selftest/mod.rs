//! The self-tests: one table, in the order in which they run.

pub(crate) mod harness;

mod bad_ends;
mod contpte;
#[cfg(feature = "efi")]
mod efi;
mod machine;
mod mapping;
mod process;
mod protection;
mod user_space;

use kernel::bootargs::BootArgs;
use kernel::memblock::MemBlock;
use kernel::platform::Platform;

use self::harness::{Context, Test};
pub(crate) use self::mapping::Scratch;

/// To add a test, write a function beside its likes and name it here.
const TESTS: &[Test] = &[
    Test::new("boot.registers", machine::registers),
    Test::new("trap.faults_come_back", protection::faults_come_back),
    Test::new("protection.text_is_read_only", protection::text_is_read_only),
    Test::new("protection.constants_are_read_only", protection::constants_are_read_only),
    Test::new("protection.data_is_not_executable", protection::data_is_not_executable),
    Test::new("protection.linear_map_has_no_constants", protection::linear_map_has_no_constants),
    Test::new("protection.identity_map_is_gone", protection::identity_map_is_gone),
    Test::new("protection.guards_below_stacks", protection::guards_below_stacks),
    Test::new("mapping.no_leaf_is_writable_and_executable", mapping::no_leaf_is_writable_and_executable),
    Test::new("mapping.linear_map_is_all_of_memory", mapping::linear_map_is_all_of_memory),
    Test::new("mapping.nothing_but_what_is_needed", mapping::nothing_but_what_is_needed),
    Test::new("mapping.uses_blocks_and_contiguous_groups", mapping::uses_blocks_and_contiguous_groups),
    Test::new("mapping.scenarios", mapping::scenarios),
    Test::new("frames.check", machine::frames_check),
    Test::new("frames.scenarios", machine::frames_scenarios),
    Test::new("frames.poison", machine::poison),
    Test::new("frames.zero_and_copy", machine::zero_and_copy),
    Test::new("frames.two_cpus", machine::frames_two_cpus),
    Test::new("heap.grows", machine::heap_grows),
    Test::new("timer.tick_matches_counter", machine::tick_matches_counter),
    Test::new("smp.every_cpu_runs_a_function", machine::every_cpu_runs_a_function),
    Test::new("smp.two_cpus_in_the_page_tables", mapping::two_cpus_in_the_page_tables),
    Test::new("contpte.scenarios", contpte::scenarios),
    Test::new("contpte.scenarios_16k", contpte::scenarios_16k),
    Test::new("contpte.scenarios_64k", contpte::scenarios_64k),
    Test::new(
        "contpte.a_block_is_used_while_another_cpu_changes_it",
        contpte::a_block_is_used_while_another_cpu_changes_it,
    ),
    #[cfg(feature = "efi")]
    Test::new("efi.regions_are_mapped_as_demanded", efi::regions_are_mapped_as_demanded),
    #[cfg(feature = "efi")]
    Test::new("efi.no_block_is_folded", efi::no_block_is_folded),
    #[cfg(feature = "efi")]
    Test::new("efi.permissions_hold", efi::permissions_hold),
    #[cfg(feature = "fault-injection")]
    Test::new("efi.a_public_call_warns", efi::a_public_call_warns),
    #[cfg(feature = "efi")]
    Test::new("efi.variables", efi::variables),
    #[cfg(feature = "efi")]
    Test::new("efi.time", efi::time),
    #[cfg(feature = "efi")]
    Test::new("efi.calls_come_back", efi::calls_come_back),
    // The last of them: there are no services after it. What follows shows that all else goes on.
    #[cfg(feature = "efi")]
    Test::new("efi.a_crashing_call_comes_back", efi::a_crashing_call_comes_back),
    #[cfg(feature = "efi")]
    Test::on_request("efi.reset_system_on_request", efi::reset_system),
    Test::new("process.hello", process::hello),
    Test::new("process.hello_static", process::hello_static),
    Test::new("process.arguments", process::arguments),
    Test::new("process.memory", process::memory),
    Test::new("process.processes", process::processes),
    Test::new("process.exec", process::exec),
    Test::new("process.files", process::files),
    Test::new("process.errors", process::errors),
    Test::new("process.time", process::time),
    Test::new("process.random", process::random),
    Test::new("process.float", process::float),
    Test::new("process.kernel_memory_is_out_of_reach", process::kernel_memory_is_out_of_reach),
    Test::new("process.crowd", process::crowd),
    Test::new("process.missing", process::missing),
    Test::new("process.folds", process::folds),
    Test::new("process.contpte", process::contpte),
    Test::new("process.populate", process::populate),
    Test::new("process.is_killed_while_it_populates", process::is_killed_while_it_populates),
    Test::new(
        "process.a_block_is_used_while_another_cpu_changes_it",
        process::a_block_is_used_while_another_cpu_changes_it,
    ),
    Test::new("process.memory_of_who_ends_is_waited_for", process::memory_of_who_ends_is_waited_for),
    Test::new("process.user_memory_is_not_the_kernels", process::user_memory_is_not_the_kernels),
    Test::new("process.kernel_stacks_have_guards", process::kernel_stacks_have_guards),
    Test { seconds: 120, ..Test::on_request("process.memory_is_short_on_request", process::memory_is_short) },
    Test {
        seconds: 120,
        ..Test::on_request("process.each_allocation_fails_on_request", process::each_allocation_fails)
    },
    Test {
        seconds: 120,
        ..Test::on_request("process.long_calls_on_request", process::long_calls_let_others_run)
    },
    Test::on_request("harness.fails_on_request", bad_ends::fails),
    Test::on_request("harness.panics_on_request", bad_ends::panics),
    // The other CPU may be late.
    Test {
        seconds: 30,
        ..Test::on_request("harness.panics_elsewhere_on_request", bad_ends::panics_elsewhere)
    },
    Test::on_request("harness.faults_on_request", bad_ends::faults),
    Test::on_request("harness.overflows_on_request", bad_ends::overflows),
    Test::on_request("harness.hangs_on_request", bad_ends::hangs),
    Test::on_request("harness.hangs_masked_on_request", bad_ends::hangs_masked),
    Test::on_request("harness.leaks_on_request", bad_ends::leaks),
    Test::on_request("harness.writes_to_free_memory_on_request", bad_ends::writes_to_free_memory),
];

/// Runs the tests that the boot arguments select and ends the machine.
pub(crate) fn main(platform: &Platform<'_>, memblock: &MemBlock, arguments: &BootArgs<'_>) -> ! {
    harness::main(&Context { platform, memblock }, arguments, TESTS)
}
