#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks Autobahn's test suite for WebSockets under the folder given, with the Python 2.7 that it
# needs: nothing on the system changes. The interpreter is Debian 11's, the packages are PyPI's, of
# the versions that the suite itself asks for. `wstest` in that folder runs it.
set -euo pipefail
# shellcheck source=tests/again.sh
. "$(dirname "$0")/../again.sh"
here=$(mkdir -p "${1:?usage: autobahn.sh FOLDER [PYTHON3 WITH PIP]}" && cd "$1" && pwd)
python3=${2:-python3}
stamp="$here/.ready-$(sha256sum "$0" | cut -c1-16)"
[ -e "$stamp" ] && exit 0
apt="$here/apt"
rm -rf "$here/root" "$here/site" "$here/wheels" "$here/sources"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$here"/{root,site,wheels,sources,debs}

# Debian 11 from where this machine takes its own packages.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
  awk '/\/debian\/?$/ && !seen++')
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
  "${mirror:?no Debian among the sources of apt} bullseye main" >"$apt/sources.list"
options=(-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "Debug::NoLocking=1"
  -o "APT::Sandbox::User=root" -o "Dir::Etc::SourceList=$apt/sources.list"
  -o "Dir::Etc::SourceParts=/nonexistent" -o "Acquire::Languages=none")
packages=(python2.7-minimal libpython2.7-minimal libpython2.7-stdlib libssl1.1 libffi7)
fetched() {
  local package new="$here/debs/new"
  apt-get "${options[@]}" update -qq || return
  for package in "${packages[@]}"; do
    ls "$here/debs/${package}_"*.deb >/dev/null 2>&1 && continue
    # Half a package is none.
    rm -rf "$new" && mkdir "$new" || return
    (cd "$new" && apt-get "${options[@]}" download -qq "$package") || return
    mv "$new"/*.deb "$here/debs" || return
  done
}
again fetched
for deb in "$here"/debs/*.deb; do dpkg -x "$deb" "$here/root"; done
printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s" PYTHONPATH="%s" PYTHONDONTWRITEBYTECODE=1\nexec "%s" -W ignore "$@"\n' \
  "$here/root/usr/lib/$(uname -m)-linux-gnu" "$here/site" "$here/root/usr/bin/python2.7" \
  >"$here/python2"
chmod +x "$here/python2"

download=("$python3" -m pip download --quiet --disable-pip-version-check --no-deps)
for_python2=(--only-binary :all: --python-version 2.7 --implementation cp --abi cp27mu
  --platform "manylinux1_$(uname -m)" --platform "manylinux2010_$(uname -m)" --platform any)
again "${download[@]}" "${for_python2[@]}" --dest "$here/wheels" \
  pip==20.3.4 setuptools==44.0.0 incremental==16.10.1 zope.interface==4.6.0 jinja2==2.11.3 \
  markupsafe==1.1.1 six==1.16.0 constantly==15.1.0 attrs==19.3.0 hyperlink==19.0.0 \
  automat==0.8.0 idna==2.8 PyHamcrest==1.9.0 pyopenssl==19.1.0 cryptography==3.3.2 \
  cffi==1.15.1 enum34==1.1.10 ipaddress==1.0.23
for wheel in "$here"/wheels/*.whl; do "$python3" -m zipfile -e "$wheel" "$here/site"; done
touch "$here/site/zope/__init__.py"
# The suite only wants its names.
echo 'from unittest import *' >"$here/site/unittest2.py"
# Sources whose set-up only Python 2 understands. None has compiled parts that are needed.
(cd "$here/sources" &&
  again "$here/python2" -m pip --no-python-version-warning download --quiet \
  --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation \
  Twisted==19.10.0 txaio==2.1.0 autobahn==0.10.9 autobahntestsuite==25.10.1 >/dev/null)
for archive in "$here"/sources/*.tar.*; do tar -xf "$archive" -C "$here/sources"; done
cp -r "$here"/sources/Twisted-*/src/twisted "$here"/sources/txaio-*/txaio \
  "$here"/sources/autobahn-*/autobahn "$here"/sources/autobahntestsuite-*/autobahntestsuite \
  "$here/site"
printf '#!/bin/sh\nexec "%s" -c "from autobahntestsuite.wstest import run; run()" "$@"\n' \
  "$here/python2" >"$here/wstest"
chmod +x "$here/wstest"
"$here/wstest" --help >/dev/null
rm -rf "$here/sources" "$here/wheels" "$apt"
touch "$stamp"
