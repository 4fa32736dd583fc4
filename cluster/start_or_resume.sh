#!/usr/bin/env bash
# Start a study, or go on with it if it is there: what a job that may be run again gives as its command.
#
#   start_or_resume.sh STUDY [FLAGS of launch and resume...] -- TASK [FLAGS of launch...]
#   start_or_resume.sh digits-1 --address auto --workers 16 -- digits --trials 64
#
# While the storage is away, or a dead driver still holds the study (a minute), it tries again: METASEARCH_TRIES times
# in all (6), METASEARCH_WAIT_S seconds apart (20). SIGTERM stops the driver in good order. Exits as metasearch does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=waiting.sh
. "$(dirname "${BASH_SOURCE[0]}")/waiting.sh"
if [ "$#" -lt 3 ]; then
    echo "usage: start_or_resume.sh STUDY [FLAGS of launch and resume...] -- TASK [FLAGS of launch...]" >&2
    exit 2
fi
study=$1
shift
both=()
storage=()
while [ "$#" -gt 0 ] && [ "$1" != "--" ]; do
    both+=("$1")
    case "$1" in
        --storage) storage=("$1" "${2:-}") ;;
        --storage=*) storage=("$1") ;;
    esac
    shift
done
if [ "${1:-}" != "--" ] || [ "$#" -lt 2 ]; then
    echo "start_or_resume.sh: -- and a TASK must follow the flags of $study" >&2
    exit 2
fi
shift

stopped=
driver=
trap 'stopped=1; [ -z "$driver" ] || kill -TERM "$driver" 2> /dev/null || true' TERM INT

waited_for() {
    "$@" &
    driver=$!
    [ -z "$stopped" ] || kill -TERM "$driver"  # told between two lines
    code=0
    wait_until_ended "$driver" || code=$?
    driver=
    return "$code"
}

attempt() {
    code=0
    metasearch status "$study" ${storage[@]+"${storage[@]}"} > /dev/null 2>&1 || code=$?
    case "$code" in
        0) waited_for metasearch resume "$study" ${both[@]+"${both[@]}"} ;;
        3) waited_for metasearch launch "$@" --name "$study" ${both[@]+"${both[@]}"} ;;
        *) return "$code" ;;
    esac
}

tries=${METASEARCH_TRIES:-6}
while [ -z "$stopped" ]; do
    code=0
    attempt "$@" || code=$?
    tries=$((tries - 1))
    if [ "$code" != 5 ] || [ "$tries" -le 0 ]; then
        exit "$code"
    fi
    echo "start_or_resume.sh: storage away or study held; $tries more tries" >&2
    waited_for sleep "${METASEARCH_WAIT_S:-20}" || true
done
exit 130
