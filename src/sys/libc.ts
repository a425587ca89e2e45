/**
 * The C library as typed functions. Addresses and file descriptors are JavaScript numbers: user space lies below 2^47.
 *
 * A call costs 30 to 60 ns beside what it does, and allocates nothing. Functions that can fail return the negative
 * errno, as the kernel does, so that the data path needs neither exceptions nor a second call.
 */
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')

/** Turns -1 and errno into -errno. */
const failing = (result: number): number => (result === -1 ? -koffi.errno() : result)

const raw = {
  mmap: libc.func('intptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)'),
  munmap: libc.func('int munmap(uintptr_t, size_t)'),
  madvise: libc.func('int madvise(uintptr_t, size_t, int)'),
  memcmp: libc.func('int memcmp(uintptr_t, uintptr_t, size_t)'),
  eventfd: libc.func('int eventfd(uint, int)'),
  close: libc.func('int close(int)'),
  read: libc.func('intptr_t read(int, uintptr_t, size_t)'),
  write: libc.func('intptr_t write(int, uintptr_t, size_t)'),
  preadv: libc.func('intptr_t preadv(int, uintptr_t, int, int64_t)'),
  pwritev: libc.func('intptr_t pwritev(int, uintptr_t, int, int64_t)'),
  fallocate: libc.func('int fallocate(int, int, int64_t, int64_t)'),
  lseek: libc.func('int64_t lseek(int, int64_t, int)'),
  flock: libc.func('int flock(int, int)'),
  ioctl: libc.func('int ioctl(int, ulong, uintptr_t)'),
  socket: libc.func('int socket(int, int, int)'),
  bind: libc.func('int bind(int, uintptr_t, uint)'),
  listen: libc.func('int listen(int, int)'),
  connect: libc.func('int connect(int, uintptr_t, uint)'),
  socketpair: libc.func('int socketpair(int, int, int, uintptr_t)'),
  shutdown: libc.func('int shutdown(int, int)'),
  sendmsg: libc.func('intptr_t sendmsg(int, uintptr_t, int)'),
  recvmsg: libc.func('intptr_t recvmsg(int, uintptr_t, int)'),
  memfdCreate: libc.func('int memfd_create(const char *, uint)'),
  ftruncate: libc.func('int ftruncate(int, int64_t)'),
  fcntl: libc.func('int fcntl(int, int, ...)'),
  setsockopt: libc.func('int setsockopt(int, int, int, uintptr_t, uint)'),
  getsockopt: libc.func('int getsockopt(int, int, int, uintptr_t, uintptr_t)'),
  getsockname: libc.func('int getsockname(int, uintptr_t, uintptr_t)'),
  getpeername: libc.func('int getpeername(int, uintptr_t, uintptr_t)'),
  affinity: libc.func('int sched_setaffinity(int, size_t, uintptr_t)'),
  syscall: libc.func('long syscall(long, long, long, long, long, long, long)'),
}

/** Copies `size` bytes; the ranges must not overlap. Declared void: returning the address would cost another 50 ns. */
export const memcpy: (target: number, source: number, size: number) => void = libc.func(
  'void memcpy(uintptr_t, uintptr_t, size_t)',
)

export const memset: (target: number, value: number, size: number) => void = libc.func(
  'void memset(uintptr_t, int, size_t)',
)

/** 0 when equal. */
export const memcmp = (a: number, b: number, size: number): number => raw.memcmp(a, b, size)

export const mmap = (
  address: number,
  size: number,
  protection: number,
  flags: number,
  fd: number,
  offset: number,
): number => failing(raw.mmap(address, size, protection, flags, fd, offset))

export const munmap = (address: number, size: number): number => failing(raw.munmap(address, size))

export const madvise = (address: number, size: number, advice: number): number =>
  failing(raw.madvise(address, size, advice))

/** A new non-blocking, close-on-exec eventfd, or -errno. */
export const eventfd = (): number => failing(raw.eventfd(0, 0o2000000 | 0o4000))

export const close = (fd: number): number => failing(raw.close(fd))
export const read = (fd: number, address: number, size: number): number =>
  failing(raw.read(fd, address, size))
export const write = (fd: number, address: number, size: number): number =>
  failing(raw.write(fd, address, size))
export const preadv = (fd: number, iovecs: number, count: number, offset: number): number =>
  failing(raw.preadv(fd, iovecs, count, offset))
export const pwritev = (fd: number, iovecs: number, count: number, offset: number): number =>
  failing(raw.pwritev(fd, iovecs, count, offset))
export const fallocate = (fd: number, mode: number, offset: number, length: number): number =>
  failing(raw.fallocate(fd, mode, offset, length))

/** The resulting offset, or -errno. */
export const lseek = (fd: number, offset: number, whence: number): number =>
  failing(raw.lseek(fd, offset, whence))

/** `operation`: LOCK_SH 1, LOCK_EX 2, LOCK_NB 4, LOCK_UN 8. */
export const flock = (fd: number, operation: number): number => failing(raw.flock(fd, operation))

export const ioctl = (fd: number, request: number, argument: number): number =>
  failing(raw.ioctl(fd, request, argument))

export const socket = (domain: number, type: number, protocol: number): number =>
  failing(raw.socket(domain, type, protocol))
export const bind = (fd: number, address: number, size: number): number =>
  failing(raw.bind(fd, address, size))
export const listen = (fd: number, backlog: number): number => failing(raw.listen(fd, backlog))
export const connect = (fd: number, address: number, size: number): number =>
  failing(raw.connect(fd, address, size))
/** Writes the two descriptors, 4 bytes each, to `pair`. */
export const socketpair = (domain: number, type: number, protocol: number, pair: number): number =>
  failing(raw.socketpair(domain, type, protocol, pair))
export const shutdown = (fd: number, how: number): number => failing(raw.shutdown(fd, how))
export const setsockopt = (fd: number, level: number, name: number, value: number, size: number): number =>
  failing(raw.setsockopt(fd, level, name, value, size))
/** Writes the option to `value`; `size` is the address of its size, 4 bytes. */
export const getsockopt = (fd: number, level: number, name: number, value: number, size: number): number =>
  failing(raw.getsockopt(fd, level, name, value, size))
export const getsockname = (fd: number, address: number, size: number): number =>
  failing(raw.getsockname(fd, address, size))
export const getpeername = (fd: number, address: number, size: number): number =>
  failing(raw.getpeername(fd, address, size))

/** The number of bytes that were taken from the struct msghdr at `message`, or -errno. */
export const sendmsg = (fd: number, message: number, flags: number): number =>
  failing(raw.sendmsg(fd, message, flags))
export const recvmsg = (fd: number, message: number, flags: number): number =>
  failing(raw.recvmsg(fd, message, flags))

/** A new file of memory, empty, or -errno. `flags`: MFD_CLOEXEC 1, MFD_ALLOW_SEALING 2. */
export const memfdCreate = (name: string, flags: number): number => failing(raw.memfdCreate(name, flags))
export const ftruncate = (fd: number, size: number): number => failing(raw.ftruncate(fd, size))

/** What the command returns, or -errno. */
export const fcntl = (fd: number, command: number, argument: number): number =>
  failing(raw.fcntl(fd, command, 'int', argument))

/** As `fcntl`, for commands whose argument is the address of a structure. */
export const fcntlAt = (fd: number, command: number, address: number): number =>
  failing(raw.fcntl(fd, command, 'uintptr_t', address))

/** Writes the time of `clock` to the struct timespec at `address`. */
export const clockGettime: (clock: number, address: number) => number = libc.func(
  'int clock_gettime(int, uintptr_t)',
)

/** Lets the other threads that wait for this processor run first. */
export const schedYield: () => number = libc.func('int sched_yield()')

/** Binds the calling thread to the processors in the bit mask at `mask`, `size` bytes long. */
export const setAffinity = (size: number, mask: number): number => failing(raw.affinity(0, size, mask))

/** Any system call by number: for those without a wrapper in the C library (io_uring). */
export const syscall = (
  number: number,
  a: number,
  b: number,
  c: number,
  d: number,
  e: number,
  f: number,
): number => failing(raw.syscall(number, a, b, c, d, e, f))

/** `size` bytes of memory at `address` as an `ArrayBuffer` that does not own them. Costs about 1 µs: do it once. */
export const viewMemory = (address: number, size: number): ArrayBuffer => koffi.view(address, size)

/** Ends the process at once, whatever its threads are doing, and without what libraries do at exit. */
export const exitNow: (code: number) => void = libc.func('void _exit(int)')
