/** What the lab's guest runs: its first program, and two commands for a look at multipath. All of it is busybox's shell. */

/** How the shell's prompt begins. What is typed before it stands there may be lost while the shell sets up its terminal. */
export const READY = 'root@lab:'

/**
 * Process 1. The environment comes from the kernel's command line: LAB_HINT says how the terminal is left, LAB_ROWS and
 * LAB_COLUMNS how large it is, LAB_NQN and LAB_PORTS (`PORT,PORT`) what is connected to.
 */
export const INIT = `#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/applets HOME=/root TERM=\${TERM:-vt100}
/bin/busybox mkdir -p /applets /proc /sys /dev /run /tmp /mnt /root /etc/nvme
/bin/busybox --install -s /applets
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev 2>/dev/null
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules.order
hostname lab
# The power button.
mkdir -p /etc/acpi/PWRF /var/log /var/run
printf '#!/bin/busybox sh\\npoweroff -f\\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid 2>/dev/null
ip link set lo up
stty -F /dev/$LAB_CONSOLE rows "$LAB_ROWS" cols "$LAB_COLUMNS" 2>/dev/null

cat /proc/sys/kernel/random/uuid >/etc/nvme/hostid
echo "nqn.2014-08.org.nvmexpress:uuid:$(cat /etc/nvme/hostid)" >/etc/nvme/hostnqn

index=0
for port in $(echo "$LAB_PORTS" | tr , ' '); do
  ip address add "10.0.$((index + 2)).15/24" dev "eth$index" && ip link set "eth$index" up
  # An emulated machine that is busy may take longer for all its queues than the gateway waits for a sign of life.
  tries=0
  until /usr/sbin/nvme connect -t tcp -a "10.0.$((index + 2)).2" -s "$port" -n "$LAB_NQN" -l -1 -c 1 -k 2 >/dev/null || [ $tries -ge 5 ]; do
    sleep 1
    tries=$((tries + 1))
  done
  index=$((index + 1))
done

# Controllers and paths come up by themselves, one after the other.
has() { [ "$(ls -d $1 2>/dev/null | grep -c "$2")" -ge "$3" ]; }
tries=0
until has '/dev/nvme*n*' 'nvme[0-9]*n[0-9]*$' "$LAB_DISKS" &&
  has '/sys/class/nvme/nvme*/nvme*c*n*' . $((LAB_DISKS * index)) || [ $tries -ge 300 ]; do
  sleep 0.1
  tries=$((tries + 1))
done

# This shell takes its own applets before programs of the same name, unless it is told where those are.
for program in /usr/sbin/* /usr/bin/*; do echo "alias \${program##*/}=$program"; done >/etc/shrc
# Process 1 is no init that could be asked.
for command in poweroff reboot halt; do echo "alias $command='$command -f'"; done >>/etc/shrc
show() {
  printf '\\n# %s\\n' "$*"
  program=$1
  shift
  for home in /usr/sbin /usr/bin; do [ -x "$home/$program" ] && "$home/$program" "$@" 2>&1; done
}
show nvme list
show lspci
show fdisk -l
[ -n "$LAB_PORTS" ] && show paths
printf '\\nThis is a shell in the lab, Linux %s. poweroff ends the lab; Ctrl-] %s.\\n' "$(uname -r)" "$(echo "$LAB_HINT" | tr _ ' ')"
cd /root
export ENV=/etc/shrc PS1='${READY}\\w# '
setsid sh -c "exec sh -i </dev/$LAB_CONSOLE >/dev/$LAB_CONSOLE 2>&1"
poweroff -f
`

/** The paths of each multipath disk, as Linux sees them. */
export const PATHS = `#!/bin/busybox sh
/usr/sbin/nvme list-subsys
for path in /sys/class/nvme/nvme*/nvme*c*n*; do
  [ -e "$path/ana_state" ] && echo "\${path##*/} $(cat "$path/ana_state") $(cat "\${path%/*}/state")"
done
true
`

/** A serial port does not hear that the terminal has another size: this asks where its last corner is. */
export const RESIZE = `#!/bin/busybox sh
saved=$(stty -g)
stty raw -echo min 0 time 20
printf '\\0337\\033[999;999H\\033[6n\\0338'
IFS='[;' read -r -d R _ rows columns
stty "$saved"
[ -n "$columns" ] && stty rows "$rows" cols "$columns"
stty size
`

/** Every block is written, read back past the cache and compared; a path that is lost shows as a pause, not as an error. */
export const LOAD = `#!/bin/busybox sh
# load [SECONDS [DISK]]
seconds=\${1:-20} disk=\${2:-/dev/nvme0n1}
now() { read -r up _ </proc/uptime; echo "\${up%.*}\${up#*.}"; }
first=$(now) blocks=0 errors=0 wrong=0 longest=0
while [ $(($(now) - first)) -lt $((seconds * 100)) ]; do
  dd if=/dev/urandom of=/tmp/block bs=64k count=1 2>/dev/null
  start=$(now)
  dd if=/tmp/block of="$disk" bs=64k seek=$((blocks % 1000)) oflag=direct conv=notrunc 2>/dev/null || errors=$((errors + 1))
  dd if="$disk" of=/tmp/back bs=64k skip=$((blocks % 1000)) count=1 iflag=direct 2>/dev/null || errors=$((errors + 1))
  took=$(($(now) - start))
  [ $took -gt $longest ] && longest=$took
  cmp -s /tmp/block /tmp/back || wrong=$((wrong + 1))
  blocks=$((blocks + 1))
done
echo "load: $blocks blocks written and read back in $seconds s, $errors errors, $wrong wrong, longest pause $((longest * 10)) ms"
`
