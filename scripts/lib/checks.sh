# shellcheck shell=bash
# Running checks one after the other, counting what really ran. Sourced after common.sh.

PASSED=0
FAILED=0
FAILURES=() # NAME: REASON
SKIPS=()    # NAME — REASON
readonly LOG_DIR=$OUT_DIR/logs

# skip NAME REASON
skip() {
    SKIPS+=("$1 — $2")
    say "skipped: $1 — $2"
}

# failed NAME REASON: one failure.
failed() {
    FAILED=$((FAILED + 1))
    FAILURES+=("$1: $2")
    say "FAILED: $1: $2"
}

# logged NAME COMMAND...: runs a command with its output in a log, which is shown if it fails.
logged() {
    local log=$LOG_DIR/$1.log status
    say "running: $1"
    shift
    "$@" >"$log" 2>&1 </dev/null
    status=$?
    if ((status)); then
        tail -n 200 "$log" >&2
        say "the whole log is $log"
    fi
    return "$status"
}

# check NAME COMMAND...: one check, which the command's exit status decides.
check() {
    local started=$SECONDS
    if logged "$@"; then
        PASSED=$((PASSED + 1))
        say "ok: $1 ($((SECONDS - started)) s)"
    else
        failed "$1" "see $LOG_DIR/$1.log"
        return 1
    fi
}

# cargo_tests NAME COMMAND...: counts each test that libtest reports in the command's output.
cargo_tests() {
    local name=$1 started=$SECONDS status test reason count=0 bad=0 line log=$LOG_DIR/$1.log
    logged "$@"
    status=$?
    while IFS= read -r line; do
        [[ $line =~ ^test\ result:\ [A-Za-z]+\.\ ([0-9]+)\ passed\;\ ([0-9]+)\ failed\; ]] || continue
        count=$((count + BASH_REMATCH[1])) bad=$((bad + BASH_REMATCH[2]))
    done <"$log"
    while IFS= read -r line; do
        [[ $line =~ ^test\ (.*)\ \.\.\.\ ignored(,\ (.*))?$ ]] || continue
        skip "$name ${BASH_REMATCH[1]}" "${BASH_REMATCH[3]:-ignored, without a reason}"
    done <"$log"
    PASSED=$((PASSED + count)) FAILED=$((FAILED + bad))
    if ((bad)); then
        while IFS= read -r line; do
            test=${line%%$'\t'*} reason=${line#*$'\t'}
            FAILURES+=("$name $test: $reason")
        done < <(failed_tests "$log")
    fi
    if ((status && !bad)); then
        failed "$name" "the command failed (exit status $status)"
    elif ((!status && !count && !bad)); then
        failed "$name" "no test ran"
    elif ((bad)); then
        say "FAILED: $name: $count passed, $bad failed ($((SECONDS - started)) s)"
    else
        say "ok: $name: $count passed ($((SECONDS - started)) s)"
    fi
}

# failed_tests LOG: prints NAME, a tab and the first line of the panic for each test that failed.
failed_tests() {
    awk '
        /^test .* \.\.\. FAILED$/ { name = $0; sub(/^test /, "", name); sub(/ \.\.\. FAILED$/, "", name); order[++n] = name }
        /^---- .* stdout ----$/ { name = $0; sub(/^---- /, "", name); sub(/ stdout ----$/, "", name); current = name }
        take { if (current != "" && !(current in reason)) reason[current] = $0; take = 0 }
        /panicked at / { take = 1 }
        END { for (i = 1; i <= n; i++) printf "%s\t%s\n", order[i], (order[i] in reason) ? reason[order[i]] : "see the log" }
    ' "$1"
}

# summary: the table of what failed, what was skipped, and the line with the numbers. False where
# something failed or nothing ran.
summary() {
    local line
    echo
    if ((${#FAILURES[@]})); then
        echo "failures:"
        for line in "${FAILURES[@]}"; do echo "  $line"; done
    fi
    for line in "${SKIPS[@]}"; do echo "skipped: $line"; done
    line="$PASSED passed, $FAILED failed"
    ((!${#SKIPS[@]})) || line+=", ${#SKIPS[@]} skipped"
    echo "$line"
    ((FAILED == 0 && PASSED > 0))
}
