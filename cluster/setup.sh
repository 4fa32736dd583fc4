#!/usr/bin/env bash
# Install metasearch and Ray, of the versions in versions.env, on one node. Where they are there it does nothing.
#
#   cluster/setup.sh [aws|gcp]       aws, gcp: also what buckets and the autoscaler of that cloud need
#
# Beside the folder of this script lie constraints.txt and dist/, where `pip wheel --no-deps --wheel-dir dist .` put
# the wheel. Everything goes to ~/metasearch-venv (METASEARCH_VENV names another folder).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source-path=SCRIPTDIR source=versions.env
source "$here/versions.env"
venv=${METASEARCH_VENV:-$HOME/metasearch-venv}
wheel="$root/dist/metasearch-$METASEARCH_VERSION-py3-none-any.whl"
[ -f "$wheel" ] || { echo "setup.sh: $wheel: make it with: pip wheel --no-deps --wheel-dir dist ." >&2; exit 2; }

case "${1:-}" in
    "") packages=() ;;
    aws) packages=("s3fs==$S3FS_VERSION" "boto3==$BOTO3_VERSION") ;;
    gcp) packages=("gcsfs==$GCSFS_VERSION" "google-api-python-client==$GOOGLE_API_VERSION"
                   "google-auth-httplib2==$GOOGLE_AUTH_HTTPLIB2_VERSION") ;;
    *) echo "setup.sh: must be given aws, gcp or nothing, got $1" >&2; exit 2 ;;
esac

wanted=$(cat "$here/versions.env" "$root/constraints.txt" "$wheel" - <<< "${packages[*]-}" | sha256sum)
if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    sudo apt-get update -qq
    sudo apt-get install -qq -y python3-venv
fi
# uv brings the very same Python to every node, whatever their systems have.
python3 -m venv "$venv-uv"
"$venv-uv/bin/pip" install --quiet --disable-pip-version-check "uv==$UV_VERSION"
"$venv-uv/bin/uv" venv --quiet --clear --python "$PYTHON_VERSION" "$venv"
install_packages() { VIRTUAL_ENV="$venv" "$venv-uv/bin/uv" pip install --quiet "$@"; }
# ray[default], not only ray[tune]: the job server and the dashboard are in it.
install_packages --constraint "$root/constraints.txt" "metasearch[postgresql] @ file://$wheel" \
    "ray[default]==$RAY_VERSION" "${packages[@]}"
echo "$wanted" > "$venv/.installed"
