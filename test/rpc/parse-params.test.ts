import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { method } from '../../src/rpc/method.ts'
import { uint16, uint64, uuid } from '../../src/rpc/params.ts'
import { parseParams } from '../../src/rpc/parse-params.ts'

const options = {
  name: 'disk_create',
  summary: '',
  params: z.object({
    name: z.string(),
    num_blocks: uint64.min(1).max(1000).default(8),
    size: uint64.optional(),
    port: uint16.optional(),
    mode: z.enum(['fast', 'safe']).optional(),
    subnqn: z
      .string()
      .regex(/^nqn\./, 'an NQN begins with nqn.')
      .optional(),
    address: z.strictObject({ host: z.string(), port: uint16.optional() }).optional(),
    names: z.array(z.string()).max(2).optional(),
    config: z.union([z.string(), z.record(z.string(), z.string())]).optional(),
    readonly: z.boolean().optional(),
    aligned: z.int().multipleOf(512).optional(),
    uuid: uuid.optional(),
    psk: z.string().max(3).optional(),
  }),
  result: z.literal(true),
  ignored: ['io_unit_size'],
  run: () => true as const,
} as const
const strict = method(options)
const relaxed = method({ ...options, relaxed: true })

const parse = (params: unknown): unknown => parseParams(strict, params)

describe('parseParams', () => {
  it('fills in defaults and leaves the rest as given', () => {
    expect(parse({ name: 'a', names: ['b'] })).toEqual({ name: 'a', num_blocks: 8, names: ['b'] })
  })

  it('takes null for absent, at every level', () => {
    expect(parse({ name: 'a', num_blocks: null, config: null, address: { host: 'h', port: null } })).toEqual({
      name: 'a',
      num_blocks: 8,
      address: { host: 'h' },
    })
  })

  it('drops what only older clients know', () => {
    expect(parse({ name: 'a', io_unit_size: 8192 })).toEqual({ name: 'a', num_blocks: 8 })
  })

  it('drops everything unknown in a relaxed method', () => {
    expect(parseParams(relaxed, { name: 'a', colour: 'red' })).toEqual({ name: 'a', num_blocks: 8 })
  })

  it('takes 2^53 - 1 and refuses the next number, which JSON would round', () => {
    expect(parse({ name: 'a', size: 9007199254740991 })).toMatchObject({ size: 9007199254740991 })
    expect(() => parse({ name: 'a', size: 9007199254740992 })).toThrow(
      'size must be at most 9007199254740991, not 9007199254740992',
    )
  })

  it.each([
    [{ name: 'a\0b' }, 'disk_create: name has a NUL character'],
    [{ name: 'a', address: { host: 'h\0' } }, 'disk_create: address.host has a NUL character'],
    [{ name: 'a', names: ['b', 'c\0'] }, 'disk_create: names.1 has a NUL character'],
    [{ name: 'a', config: { 'k\0': 'v' } }, 'disk_create: a member of config has a NUL character'],
  ])('refuses a text that the kernel and Ceph would cut short: %j', (params, message) => {
    expect(() => parse(params)).toThrow(message)
  })

  it('takes any UUID in either case and answers in lower case', () => {
    expect(parse({ name: 'a', uuid: '2D2D3F0A-9A2B-0C55-0B1E-6A7F1C3C9D10' })).toMatchObject({
      uuid: '2d2d3f0a-9a2b-0c55-0b1e-6a7f1c3c9d10',
    })
  })

  it.each([
    [{}, 'disk_create: name is required'],
    [{ name: null }, 'disk_create: name is required'],
    [{ name: 5 }, 'disk_create: name must be a string, not 5'],
    [{ name: 'a', num_blocks: 0 }, 'disk_create: num_blocks must be at least 1, not 0'],
    [{ name: 'a', num_blocks: 1001 }, 'disk_create: num_blocks must be at most 1000, not 1001'],
    // Beyond the bounds of every whole number that JSON holds as well: the tightest is told, once.
    [{ name: 'a', num_blocks: 1e30 }, 'disk_create: num_blocks must be at most 1000, not 1e+30'],
    [{ name: 'a', num_blocks: -1e30 }, 'disk_create: num_blocks must be at least 1, not -1e+30'],
    [
      { name: 'a', num_blocks: 1e30, port: 1e30 },
      'disk_create: num_blocks must be at most 1000, not 1e+30; port must be at most 65535, not 1e+30',
    ],
    [{ name: 'a', num_blocks: '8' }, 'disk_create: num_blocks must be a number, not "8"'],
    [{ name: 'a', num_blocks: 1.5 }, 'disk_create: num_blocks must be a whole number, not 1.5'],
    [{ name: 'a', port: 65536 }, 'disk_create: port must be at most 65535, not 65536'],
    [{ name: 'a', mode: 'quick' }, 'disk_create: mode must be "fast" or "safe", not "quick"'],
    [{ name: 'a', subnqn: 'x' }, 'disk_create: subnqn: an NQN begins with nqn., not "x"'],
    [{ name: 'a', readonly: 'true' }, 'disk_create: readonly must be true or false, not "true"'],
    [{ name: 'a', aligned: 513 }, 'disk_create: aligned must be a multiple of 512, not 513'],
    [{ name: 'a', address: { port: 1 } }, 'disk_create: address.host is required'],
    [{ name: 'a', address: { host: 'h', prot: 1 } }, 'disk_create: there is no parameter address.prot'],
    [{ name: 'a', address: 'h' }, 'disk_create: address must be an object, not "h"'],
    [
      { name: 'a', names: ['a', 'b', 'c'] },
      'disk_create: names must have at most 2 elements, not ["a","b","c"]',
    ],
    [{ name: 'a', config: 5 }, 'disk_create: config must be a string or an object, not 5'],
    [{ name: 'a', num_block: 5 }, 'disk_create: there is no parameter num_block; did you mean num_blocks?'],
    [['a'], 'disk_create: params must be an object, not ["a"]'],
    [{ name: 'a', psk: 'geheim' }, 'disk_create: psk must have at most 3 characters'],
    [
      { name: 5, num_blocks: 0, port: -1, mode: 'x', readonly: 1 },
      'disk_create: name must be a string, not 5; num_blocks must be at least 1, not 0; port must be at least 0, not -1; and 2 more',
    ],
  ])('refuses %j and says why', (params, message) => {
    expect(() => parse(params)).toThrow(expect.objectContaining({ message, code: 'INVALID_PARAMS' }))
  })

  it('lists what a method takes when an unknown name resembles nothing', () => {
    expect(() => parse({ name: 'a', zzzzzz: 1 })).toThrow('; it takes name, num_blocks, size')
  })

  it('cuts long values', () => {
    expect(() => parse({ name: 'a', mode: 'x'.repeat(10_000) })).toThrow(/^.{0,200}…$/)
  })
})
