# Source it in a script whose traps pass signals on to a program that it runs beside itself.
# shellcheck shell=bash

# Return the exit status of a child once it has ended. bash runs a trap only when what it waits for has ended; `wait`
# is what a signal ends at once, with a status of its own, and so is called again while the child lives.
wait_until_ended() {
    local status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2> /dev/null; do
        status=0
        wait "$1" || status=$?
    done
    return "$status"
}
