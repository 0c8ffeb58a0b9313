#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/vm/run.sh [WEFT]: control groups of version 2, in a virtual machine of their own.
#
# Boots Debian's kernel, with the unified hierarchy only, on a disk in memory that has weft (default
# target/release/weft), busybox and Python; guest.py asserts. No rights are needed: without /dev/kvm
# the processor is imitated, which takes one to two minutes. Debian packages: qemu-system-x86,
# busybox-static, cpio, python3. The kernel is downloaded and unpacked under target/vm.
set -euo pipefail
cd "$(dirname "$0")/../.."
weft=$(realpath "${1:-target/release/weft}")
limit=${VM_SECONDS:-600}
here=target/vm
root=$here/root

for tool in qemu-system-x86_64 busybox cpio /usr/bin/python3; do
  command -v "$tool" >/dev/null || {
    echo "vm: $tool is missing: apt-get install qemu-system-x86 busybox-static cpio python3" >&2
    exit 2
  }
done

mkdir -p "$here/debs"
if ! ls "$here"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  (cd "$here/debs" && apt-get -o APT::Sandbox::User=root download -qq "$kernel")
  dpkg -x "$here"/debs/linux-image-*.deb "$here/kernel"
fi
image=$(echo "$here"/kernel/boot/vmlinuz-*)
version=${image##*/vmlinuz-}

# Copies programs and what they are linked with.
with_libraries() {
  local file
  for file in "$@" $(ldd "$@" | grep -o '/[^ :]*' | sort -u); do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
  done
}

rm -rf "$root"
mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,etc,root,usr/lib,lib/modules,test}
python=$(realpath /usr/bin/python3)
with_libraries "$python"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s "$python" "$root/bin/python3"
library=/usr/lib/${python##*/}
tar -C / -cf - --exclude=test --exclude='config-*' --exclude=lib2to3 --exclude=pydoc_data \
  --exclude=ensurepip --exclude=tkinter --exclude=idlelib "${library#/}" | tar -C "$root" -xf -
objcopy --strip-debug "$weft" "$root/bin/weft"
mkdir -p "$root/lib64"
for file in $(ldd "$weft" | grep -o '/[^ :]*' | sort -u); do
  mkdir -p "$root$(dirname "$file")" && cp -L "$file" "$root$file"
done
modules=$root/lib/modules/$version
for part in net/netfilter net/ipv4/netfilter net/ipv6/netfilter drivers/net/veth.ko lib; do
  from=$here/kernel/lib/modules/$version/kernel/$part
  mkdir -p "$modules/kernel/$(dirname "$part")"
  cp -r "$from" "$modules/kernel/$part"
done
busybox depmod -b "$root" "$version" 2>/dev/null
printf 'root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/hostname"
cp tests/vm/guest.py "$root/test/"

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin:/sbin
/bin/busybox --install -s /bin
ln -s /bin/busybox /sbin/modprobe
# A mount of its own over the kernel's first file system, which no process may leave otherwise.
mount -o bind / /root && cd /root && mount --move . / && exec chroot . /bin/sh /begin
INIT
cat >"$root/begin" <<'BEGIN'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
ln -sf /proc/self/fd /dev/fd
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
chmod 755 / /root
ip link set lo up
modprobe -a veth nf_tables nft_chain_nat nft_redir nft_ct nft_socket
python3 /test/guest.py
echo "vm: ended with $?"
poweroff -f
BEGIN
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$here/disk.cpio"

accelerate=(-accel "tcg,thread=multi" -cpu max)
timeout "$limit" qemu-system-x86_64 "${accelerate[@]}" -smp 2 -m 3072 -nographic -no-reboot \
  -nic none -kernel "$image" -initrd "$here/disk.cpio" \
  -append "console=ttyS0 quiet loglevel=3 panic=-1 cgroup_no_v1=all" </dev/null |
  tr -d '\r' | tee "$here/console.log" | grep -ao --line-buffered 'vm: .*' || true
grep -aq 'vm: ended with 0$' "$here/console.log" || {
  tail -n 60 "$here/console.log" >&2
  echo "vm: failed; all it said is in $here/console.log" >&2
  exit 1
}
