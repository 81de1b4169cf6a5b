# shellcheck shell=bash
# Running QEMU, streaming its console and judging it. Sourced after qemu.sh.

# One line of `nm -n` each: address, type, name. Read when the first backtrace is seen.
SYMBOLS=() SYMBOLS_READ=

# read_symbols ELF: no tool or no file means no names.
read_symbols() {
    local nm
    SYMBOLS_READ=1
    [[ -n $SYSROOT ]] || SYSROOT=$(rustc --print sysroot 2>/dev/null)
    nm=$(find_tool nm)
    [[ -n $nm && -e $1 ]] && mapfile -t SYMBOLS < <("$nm" -nC "$1" 2>/dev/null | grep -i ' t ')
}

# symbol_at FRAME OFFSET: prints ` NAME+0xN` for the function that holds the address. The ELF is linked
# at 0, so an offset into the image is an address in it.
symbol_at() {
    # Beyond frame 0 it is a return address, which after a call that never returns is in the next function.
    local address=$(($1 == 0 ? $2 : $2 - 1)) low=0 high=${#SYMBOLS[@]} middle start name
    while ((low < high)); do
        middle=$(((low + high) / 2))
        if ((16#${SYMBOLS[middle]%% *} <= address)); then low=$((middle + 1)); else high=$middle; fi
    done
    ((low > 0)) || return
    start=${SYMBOLS[low - 1]%% *} name=${SYMBOLS[low - 1]#* ? }
    printf ' %s+0x%x' "$name" $(($2 - 16#$start))
}

# What a terminal sends at the end of the input (Ctrl-D): once for a line without an end, once for itself.
readonly END_OF_INPUT=$'\004\004'

# What QEMU reads, and prints; where it reads a pipe, who writes to it, and what lets it begin; else perhaps the settings of the
# terminal.
CONSOLE_INPUT='' CONSOLE='' CONSOLE_FEEDER='' CONSOLE_START='' CONSOLE_SETTINGS=''

# open_pipe VARIABLE: leaves a file descriptor there, of both its ends.
open_pipe() {
    local fifo=$OUT_DIR/pipe.$$
    if ! { mkdir -p "$OUT_DIR" && mkfifo -m 600 "$fifo"; }; then setup_error "the pipe $fifo can't be made"; fi
    exec {fd}<>"$fifo"
    printf -v "$1" %s "$fd"
    rm "$fifo"
}

# has_terminal: whether standard input is a terminal that may be read. In the background of one, who does is stopped.
has_terminal() {
    local stat pgrp tpgid
    [[ -t 0 ]] || return
    stat=$(<"/proc/$$/stat") || return
    # Behind the name: state, parent, process group, session, terminal, the process group in its foreground.
    read -r _ _ pgrp _ _ tpgid _ <<<"${stat##*) }"
    [[ $pgrp == "$tpgid" ]]
}

# open_console_input tests|list|init: sets CONSOLE_INPUT, from which only a program takes what there is to read.
open_console_input() {
    local fd pipe source
    if [[ $1 != init ]]; then
        exec {CONSOLE_INPUT}</dev/null
    elif has_terminal && CONSOLE_SETTINGS=$(stty -g 2>/dev/null </dev/tty); then
        # Opened once more: QEMU has its reads not wait, which would hold for writes to the terminal too.
        exec {CONSOLE_INPUT}</dev/tty
    else
        if [[ -t 0 ]] || ! { exec {source}<&0; } 2>/dev/null; then exec {source}</dev/null; fi
        open_pipe pipe
        open_pipe CONSOLE_START
        # Opened once more, for the same reason.
        exec {CONSOLE_INPUT}<"/dev/fd/$pipe"
        # One process at last, so that nothing is left when it is ended.
        { read -r -u "$CONSOLE_START" && exec cat - <(printf %s "$END_OF_INPUT"); } <&"$source" >&"$pipe" 2>/dev/null &
        CONSOLE_FEEDER=$!
        exec {pipe}>&- {source}<&-
    fi
}

# feed_console: begins to send what is piped in, and its end. Called when a program is about to run: it would get lost in a
# UART that is not set up yet, and firmware takes it for keys.
feed_console() {
    [[ -n $CONSOLE_START ]] || return
    echo >&"$CONSOLE_START"
    # Once: a program may print the same line.
    exec {CONSOLE_START}>&-
    CONSOLE_START=''
}

# leave_console IMAGE: ends who feeds it, who may wait for ever, and leaves no disk behind, nor a terminal without echo.
leave_console() {
    [[ -z $CONSOLE_FEEDER ]] || kill "$CONSOLE_FEEDER" 2>/dev/null
    # The terminal may have gone.
    [[ -z $CONSOLE_SETTINGS ]] || stty "$CONSOLE_SETTINGS" 2>/dev/null </dev/tty
    remove_esp "$1"
}

# start_console TIMEOUT: runs QEMU_COMMAND, and ends it after so many seconds (0: never). Sets CONSOLE to where its lines can
# be read; where somebody types, what it prints is shown without waiting for the end of a line.
start_console() {
    local -a command=(timeout --foreground --signal=KILL "$1" "${QEMU_COMMAND[@]}")
    local shown
    if [[ -n $CONSOLE_SETTINGS ]]; then
        exec {shown}>&1
        exec {CONSOLE}< <(exec "${command[@]}" <&"$CONSOLE_INPUT" > >(exec tee -a "/dev/fd/$shown") 2>&1)
    else
        exec {CONSOLE}< <(exec "${command[@]}" <&"$CONSOLE_INPUT" 2>&1)
    fi
}

# verdict FILE-WITH-SYMBOLS TIMEOUT tests|list|init: runs QEMU_COMMAND, prints its console and says in one line
# what is to be thought of it. The kernel was asked to run its tests, to list them, or to run a program as init, whose status
# then decides. Without a time limit there is one of 300 s, unless somebody types.
verdict() {
    local elf=$1 limit=$2 asked=$3
    local line text frame offset pid status started=$SECONDS
    local running='' last_words='' not_ok=0 failed=0
    local -a summaries=()

    open_console_input "$asked"
    [[ -n $limit ]] || limit=$([[ -n $CONSOLE_SETTINGS ]] && echo 0 || echo 300)
    start_console "$limit"
    pid=$!
    # An interrupted script must not leave its QEMU behind.
    # shellcheck disable=SC2064 # the process of now is meant
    trap "kill $pid 2>/dev/null; leave_console ${opt_image@Q}" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # The last line may have no end.
    while IFS= read -r -u "$CONSOLE" line || [[ -n $line ]]; do
        text=${line%$'\r'}
        if [[ $text =~ ^\ *\#([0-9]+)\ 0x[0-9a-f]+\ \(image\+(0x[0-9a-f]+)\)$ ]]; then
            frame=${BASH_REMATCH[1]} offset=${BASH_REMATCH[2]}
            [[ -n $SYMBOLS_READ ]] || read_symbols "$elf"
            text+=$(symbol_at "$frame" "$offset")
            line=$text
            # Once more, with its name.
            [[ -z $CONSOLE_SETTINGS ]] || printf '%s\n' "$line"
        fi
        [[ -n $CONSOLE_SETTINGS ]] || printf '%s\n' "$line"
        case $text in
        'boot: '*) feed_console ;;
        '# running '*) running=${text#'# running '} ;;
        'not ok '*) not_ok=$((not_ok + 1)) ;;
        'pleat: panic: '* | 'pleat: fatal: '*) last_words=${last_words:-${text#pleat: }} ;;
        esac
        [[ $text =~ ^[0-9]+\ passed,\ [0-9]+\ failed$ ]] && summaries+=("$text")
    done
    wait "$pid" 2>/dev/null
    status=$?
    trap - EXIT INT TERM
    leave_console "$opt_image"
    exec {CONSOLE}<&- {CONSOLE_INPUT}<&-

    # What timeout says of who it has killed; others kill too.
    if ((status == 137 && limit > 0 && SECONDS - started >= limit)); then
        local where='before the first test was started'
        [[ $asked != init ]] || where='init has not ended'
        [[ -z $running ]] || where="the test last started is $running"
        say "FAILED: no end after $limit s; $where"
        return 1
    fi
    if [[ $asked == init ]]; then
        if ((status)); then
            say "FAILED: exit status $status"
        elif [[ -n $last_words ]]; then
            say "FAILED: exit status 0, but the kernel also said: $last_words"
        else
            say "PASSED: init ended with status 0, $((SECONDS - started)) s"
            return
        fi
        return 1
    fi
    if ((${#summaries[@]} > 1)); then
        say "FAILED: ${#summaries[@]} summary lines where one was expected (exit status $status)"
        return 1
    fi
    if ((${#summaries[@]} == 0)); then
        say "FAILED: no summary line was printed (exit status $status)"
        return 1
    fi
    text=${summaries[0]} failed=${summaries[0]#* passed, } failed=${failed% failed}
    if ((10#$failed)); then
        say "FAILED: $text (exit status $status)"
    elif ((status)); then
        say "FAILED: exit status $status, though the summary says $text"
    elif [[ -n $last_words ]]; then
        say "FAILED: the summary says $text, but the kernel also said: $last_words"
    elif ((not_ok)); then
        say "FAILED: the summary says $text, but $not_ok tests were reported as 'not ok'"
    elif [[ $asked == list ]]; then
        [[ $text == '0 passed, 0 failed' ]] && say "LISTED: nothing was run (exit status 0)" && return
        say "FAILED: the tests were to be listed, but the summary says $text"
    elif [[ $text =~ ^0+\  ]]; then
        say "FAILED: no test was run (exit status 0)"
    else
        say "PASSED: $text, exit status 0, $((SECONDS - started)) s"
        return
    fi
    return 1
}
