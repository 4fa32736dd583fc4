# Source it on a node that setup.sh has set up: PATH, Ray's token, and on the head ~/.metasearch.env with
# METASEARCH_STORAGE and the like (mode 600; NAME=VALUE lines).
# shellcheck shell=sh
export PATH="${METASEARCH_VENV:-$HOME/metasearch-venv}/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
if [ -f "$HOME/.metasearch.env" ]; then
    set -a
    # shellcheck disable=SC1091  # it is the user's own
    . "$HOME/.metasearch.env"
    set +a
fi
