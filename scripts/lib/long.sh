# shellcheck shell=bash
# The checks that take long, of the mm crate: by all interleavings, by many seeds, by mutants. Sourced after checks.sh and
# toolchain.sh.

# loom's models of few threads and short blocks, exhaustive within its bound.
check_loom() {
    RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=$TARGET_DIR/loom LOOM_MAX_PREEMPTIONS=3 \
        cargo_tests loom host_cargo test --profile long -p pleat-mm --test loom_lockless --test loom_asid
}

check_property() {
    PLEAT_OPERATIONS=1000000 cargo_tests property host_cargo test --profile long -p pleat-host-tests --test property
}

check_address_spaces() {
    PLEAT_OPERATIONS=200000 cargo_tests address-spaces \
        host_cargo test --profile long -p pleat-host-tests --test address_space
}

# has_nightly CHECK COMPONENT...: a nightly Rust by rustup, with these components; else the check is skipped.
has_nightly() {
    local name=$1 sysroot component absent=
    local -a wanted=()
    shift
    if [[ $TOOLCHAIN != rustup ]]; then
        skip "$name" "a nightly Rust comes by rustup only"
        return 1
    fi
    sysroot=$(rustup_sysroot nightly)
    for component in "$@"; do
        wanted+=(--component "$component")
        case $component in
        miri) [[ -x $sysroot/bin/cargo-miri ]] || absent=1 ;;
        rust-src) [[ -d $sysroot/lib/rustlib/src ]] || absent=1 ;;
        esac
    done
    [[ -z $sysroot || -n $absent ]] || return 0
    say "installing with rustup: a nightly Rust with $*"
    # A nightly that is there stays as it is, if it has them.
    if [[ -n $sysroot ]] && rustup component add --toolchain nightly "$@" >&2; then return; fi
    if ! rustup toolchain install nightly --profile minimal "${wanted[@]}" --no-self-update >&2; then
        skip "$name" "rustup could not install a nightly Rust with $*"
        return 1
    fi
}

# cargo_tool CHECK NAME VERSION: cargo's subcommand in this version; else the check is skipped.
cargo_tool() {
    [[ $(host_cargo "$2" --version 2>/dev/null) == "cargo-$2 $3" ]] && return
    logged "cargo-$2" host_cargo install "cargo-$2" --version "$3" --locked && return
    skip "$1" "cargo could not install cargo-$2 $3"
    return 1
}

# Miri's threads and memory order depend on a seed; a test counts once, and passes if it does so with each.
check_miri() {
    has_nightly miri miri rust-src || return
    if ! logged miri-setup rustup run nightly cargo miri setup; then
        skip miri "Miri could not build its standard library, see $LOG_DIR/miri-setup.log"
        return
    fi
    check miri-lockless miri_test "-Zmiri-many-seeds=0..${PLEAT_MIRI_SEEDS:-64}" --test lockless
}

# miri_test FLAGS ARGUMENT...: not judged by libtest's lines, which many seeds print at once, in pieces.
miri_test() {
    local flags=$1
    shift
    # Borrows are for unsafe code, which mm has none of; without that check there is time for twice the seeds.
    MIRIFLAGS="-Zmiri-disable-stacked-borrows $flags" CARGO_TARGET_DIR=$TARGET_DIR/miri \
        rustup run nightly cargo miri test -p pleat-mm "$@"
}

# What libFuzzer finds in two minutes for each target, from an empty corpus on.
check_fuzz() {
    has_nightly fuzz rust-src && cargo_tool fuzz fuzz 0.13.2 || return
    if ! setup_package g++ g++; then
        skip fuzz "libFuzzer needs g++, which could not be installed"
        return
    fi
    check fuzz-ptep fuzz_target ptep 1500
    check fuzz-efi fuzz_target efi 600
    check fuzz-program fuzz_target program 1000
    check fuzz-cpio fuzz_target cpio 2000
}

# fuzz_target TARGET BYTES: with inputs of so many bytes at most.
fuzz_target() {
    mkdir -p "$OUT_DIR/fuzz/$1" || return
    rustup run nightly cargo fuzz run --fuzz-dir tests/fuzz --target-dir "$TARGET_DIR/fuzz" "$1" "$OUT_DIR/fuzz/$1" -- \
        -max_total_time="${PLEAT_FUZZ_SECONDS:-120}" -max_len="$2" -artifact_prefix="$OUT_DIR/fuzz/$1-"
}

check_mutants() {
    cargo_tool mutants mutants 27.1.0 || return
    check mutants mutants_are_noticed
    [[ ! -e $OUT_DIR/mutants/mutants.out/missed.txt ]] || FIGURES+=("mutants: $(mutants_figures)")
}

# Runs the suite that .cargo/mutants.toml names on each mutant. Those that survive must be those of docs/mutants.md.
mutants_are_noticed() (
    out=$OUT_DIR/mutants
    # Each job has a copy of the tree, and builds there. The same cases in each: a failure must not become a case of the next.
    unset CARGO_TARGET_DIR
    export LC_ALL=C PROPTEST_RNG_SEED=1 PLEAT_OPERATIONS=6000 PROPTEST_MAX_SHRINK_ITERS=0 PROPTEST_DISABLE_FAILURE_PERSISTENCE=1
    host_cargo mutants --jobs 2 --output "$out" ${PLEAT_MUTANTS_SHARD:+--shard "$PLEAT_MUTANTS_SHARD"}
    status=$?
    # 2 and 3: some survived, some timed out.
    ((status == 0 || status == 2 || status == 3)) || exit "$status"
    mutants_figures
    unnamed=$(comm -13 <(mutants_with_reason) <(mutants_that missed))
    stale=$(comm -23 <(mutants_with_reason) <(mutants_that missed))
    # A part of the mutants says nothing of the others.
    [[ -z ${PLEAT_MUTANTS_SHARD:-} ]] || stale=
    [[ -z $unnamed ]] || echo "survived, and docs/mutants.md has no reason for it:"$'\n'"$unnamed"
    [[ -z $stale ]] || echo "noticed by now, or gone; to be deleted from docs/mutants.md:"$'\n'"$stale"
    [[ -z $unnamed$stale ]]
)

# mutants_that missed|caught|timeout|unviable: prints their names, without lines and columns, which every change moves.
mutants_that() { sed -E 's/^([^:]+):[0-9]+:[0-9]+/\1/' "$OUT_DIR/mutants/mutants.out/$1.txt" | sort; }

# shellcheck disable=SC2016 # the backquotes are Markdown's
# One line for each survivor, also for those of the same name.
mutants_with_reason() { sed -n 's/^- `\(.*\)`: .*$/\1/p' docs/mutants.md | sort; }

mutants_figures() {
    local what figures=
    for what in caught timeout unviable missed; do figures+=", $(mutants_that "$what" | wc -l) $what"; done
    echo "${figures#, }${PLEAT_MUTANTS_SHARD:+ (part $PLEAT_MUTANTS_SHARD)}"
}
