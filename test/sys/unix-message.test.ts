import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { eventfd } from '../../src/sys/libc.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import {
  cannotShrink,
  createSharedMemory,
  fileIdentity,
  isEventfd,
  isSocket,
  mapShared,
  setNonBlocking,
} from '../../src/sys/shared-memory.ts'
import { closeAll, receiveMessage, sendMessage } from '../../src/sys/unix-message.ts'
import { mappingsOf, openDescriptors, socketPair } from '../support/descriptors.ts'

const { EAGAIN, EMSGSIZE, EPIPE } = constants.errno
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000

const flagsOf = (fd: number): number =>
  Number.parseInt(/flags:\s+(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8)

let ends: [number, number]
let before: number

beforeEach(() => {
  before = openDescriptors()
  ends = socketPair()
})

afterEach(() => {
  closeAll([...ends].filter(fd => fd >= 0))
  expect(openDescriptors()).toBe(before)
})

describe('a message', () => {
  it('arrives with its descriptors, which are new ones of the same files and close on exec', () => {
    const [a, b] = ends
    const memory = createSharedMemory('qpair-test', 8192)
    const event = eventfd()
    expect(sendMessage(a, Buffer.from('hello'), [memory, event])).toBe(5)

    const target = new Uint8Array(16)
    const received: number[] = []
    expect(receiveMessage(b, target, received, 8)).toBe(5)
    expect(Buffer.from(target.subarray(0, 5)).toString()).toBe('hello')
    expect(received.map(fd => fileIdentity(fd))).toEqual([fileIdentity(memory), fileIdentity(event)])
    expect(received).not.toContain(memory)
    expect(isEventfd(received[0]!)).toBe(false)
    expect(isEventfd(received[1]!)).toBe(true)
    for (const fd of received) expect(flagsOf(fd) & O_CLOEXEC).toBe(O_CLOEXEC)
    closeAll([...received, memory, event])
  })

  it('leaves what does not fit for the next call, without the descriptors', () => {
    const [a, b] = ends
    const event = eventfd()
    sendMessage(a, Buffer.from('abcdef'), [event])
    const target = new Uint8Array(4)
    const received: number[] = []
    expect(receiveMessage(b, target, received, 8)).toBe(4)
    expect(received).toHaveLength(1)
    expect(receiveMessage(b, target, received, 8)).toBe(2)
    expect(received).toHaveLength(1)
    closeAll([...received, event])
  })

  it('is waited for by nobody: EAGAIN when there is none, and when the peer does not read', () => {
    const [a, b] = ends
    expect(receiveMessage(b, new Uint8Array(1), [], 8)).toBe(-EAGAIN)
    const chunk = new Uint8Array(65536)
    let result = 0
    while (result >= 0) result = sendMessage(a, chunk)
    expect(result).toBe(-EAGAIN)
  })

  it('is not sent to a peer that is gone, and raises no signal', () => {
    const [a, b] = ends
    closeSync(b)
    ends[1] = -1
    expect(sendMessage(a, Buffer.from('x'))).toBe(-EPIPE)
    expect(receiveMessage(a, new Uint8Array(1), [], 8)).toBe(0)
  })

  it('with 253 descriptors arrives whole', () => {
    const [a, b] = ends
    const event = eventfd()
    expect(sendMessage(a, Buffer.from('x'), new Array<number>(253).fill(event))).toBe(1)
    const received: number[] = []
    expect(receiveMessage(b, new Uint8Array(1), received, 253)).toBe(1)
    expect(received).toHaveLength(253)
    closeAll([...received, event])
  })

  it('with more descriptors than wanted is refused, and none of them stays open', () => {
    const [a, b] = ends
    const event = eventfd()
    sendMessage(a, Buffer.from('x'), [event, event, event, event])
    const received: number[] = []
    expect(receiveMessage(b, new Uint8Array(1), received, 3)).toBe(-EMSGSIZE)
    expect(received).toEqual([])
    closeAll([event])
    // `afterEach` counts what is open.
  })
})

describe('shared memory', () => {
  it('is seen through both mappings, at offsets that are no page boundaries', () => {
    const fd = createSharedMemory('qpair-test', 3 * 4096)
    expect(cannotShrink(fd)).toBe(true)
    const whole = mapShared(fd, 0, 3 * 4096)
    const part = mapShared(fd, 5000, 100)
    closeAll([fd])
    bytesAt(part.address, 100)[99] = 7
    expect(bytesAt(whole.address, 3 * 4096)[5099]).toBe(7)
    expect(mappingsOf('qpair-test')).toBe(2)
    whole.unmap()
    part.unmap()
    expect(mappingsOf('qpair-test')).toBe(0)
  })

  it('beyond the end of the file is refused with both values', () => {
    const fd = createSharedMemory('qpair-test', 4096)
    expect(() => mapShared(fd, 4000, 97)).toThrow('mmap up to byte 4097 of a file of 4096 bytes: EOVERFLOW')
    closeAll([fd])
  })

  it('is not made of what is no file, or may not be written to', () => {
    const event = eventfd()
    expect(() => mapShared(event, 0, 1)).toThrow('no plain file: ENODEV')
    const directory = mkdtempSync(join(tmpdir(), 'qpair-shm-'))
    const path = join(directory, 'file')
    writeFileSync(path, 'x'.repeat(4096))
    const readOnly = openSync(path, 'r')
    expect(() => mapShared(readOnly, 0, 4096)).toThrow('EACCES')
    expect(cannotShrink(readOnly)).toBe(false)
    closeAll([event, readOnly])
    rmSync(directory, { recursive: true })
  })
})

describe('descriptors', () => {
  it('are known for what they are', () => {
    const [a] = ends
    const event = eventfd()
    const file = openSync('/dev/null', 'r')
    expect([event, a, file].map(isEventfd)).toEqual([true, false, false])
    expect([event, a, file].map(isSocket)).toEqual([false, true, false])
    closeAll([event, file])
  })

  it('can be told not to wait', () => {
    const directory = mkdtempSync(join(tmpdir(), 'qpair-shm-'))
    const file = openSync(join(directory, 'file'), 'w')
    setNonBlocking(file)
    expect(flagsOf(file) & O_NONBLOCK).toBe(O_NONBLOCK)
    closeAll([file])
    rmSync(directory, { recursive: true })
  })
})
