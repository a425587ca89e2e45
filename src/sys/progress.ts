/**
 * How far a library is with a call that takes long. Such libraries call `int callback(uint64_t done, uint64_t total, void
 * *data)` on threads of their own, from which nothing may be called in JavaScript. So the callback is a few instructions of
 * machine code that leave both numbers where `data` points and return 0; they are looked at from here.
 *
 * On other machines than x86-64 there is none, and nobody is told how far it is.
 */
import koffi from 'koffi'
import { u64At } from './blocking.ts'
import { bytesAt, mapAnonymous, unmap } from './memory.ts'

/** How often the numbers are looked at. */
const LOOK_MS = 200
const PAGE = 4096
const PROT_READ_EXEC = 1 | 4

/** System V ABI, x86-64: the arguments are in rdi, rsi and rdx, the result in eax. */
const CODE_X64 = Uint8Array.of(
  ...[0xf3, 0x0f, 0x1e, 0xfa], // endbr64
  ...[0x48, 0x89, 0x3a], //       mov [rdx], rdi
  ...[0x48, 0x89, 0x72, 0x08], // mov [rdx + 8], rsi
  ...[0x31, 0xc0], //             xor eax, eax
  0xc3, //                        ret
)

/** 0 where there is none. */
let callback: number | undefined

/** The callback's address, or 0 where this machine, or its policy, has none. */
export function progressCallback(): number {
  callback ??= machineCode(CODE_X64)
  return callback
}

/** Where x86-64 instructions can be called, or 0 as above. Never writable and executable at once. */
export function machineCode(instructions: Uint8Array): number {
  if (process.arch !== 'x64') return 0
  const mprotect = koffi.load('libc.so.6').func('int mprotect(uintptr_t, size_t, int)')
  const code = mapAnonymous(PAGE)
  bytesAt(code, instructions.length).set(instructions)
  if (mprotect(code, PAGE, PROT_READ_EXEC) === 0) return code
  // A security policy has a say in this; V8 itself would not run without.
  unmap(code, PAGE)
  return 0
}

/** What the callback is to be given: the address of two numbers, and looking at them until `work` has ended. */
export async function reportingProgress<T>(
  report: (done: number, total: number) => void,
  work: (cell: number) => Promise<T>,
): Promise<T> {
  const cell = mapAnonymous(PAGE)
  const look = (): void => {
    const total = u64At(cell + 8)
    if (total > 0) report(u64At(cell), total)
  }
  const timer = setInterval(look, LOOK_MS)
  try {
    return await work(cell)
  } finally {
    clearInterval(timer)
    look()
    unmap(cell, PAGE)
  }
}
