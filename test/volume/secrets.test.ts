/** Secrets: who they are told to, and where they lie. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { Secrets } from '../../src/volume/secrets.ts'

const UUID = '0a1b2c3d-0000-4000-8000-00000000000a'
const VALUE = Buffer.from('AQBHCbtT6APDHhAA5W00cBchwkQjh3dkKsyPjw==')

const xml = (
  options: { uuid?: string; isPrivate?: boolean; isEphemeral?: boolean; type?: string; id?: string } = {},
) => {
  const { uuid = UUID, isPrivate = false, isEphemeral = false, type = 'ceph', id = 'client.kvm' } = options
  const element = type === 'iscsi' ? 'target' : 'name'
  const words = `ephemeral='${isEphemeral ? 'yes' : 'no'}' private='${isPrivate ? 'yes' : 'no'}'`
  return `<secret ${words}><uuid>${uuid}</uuid><usage type='${type}'><${element}>${id}</${element}></usage></secret>`
}

describe('secrets', () => {
  let directory: string
  let secrets: Secrets
  let logged: string[]

  beforeEach(() => {
    directory = join(mkdtempSync(join(tmpdir(), 'qpair-secrets-')), 'secrets')
    secrets = new Secrets(directory)
    logged = []
    vi.spyOn(logSettings, 'write').mockImplementation(line => void logged.push(line))
  })
  afterEach(() => {
    rmSync(join(directory, '..'), { recursive: true })
    vi.restoreAllMocks()
  })

  it('have their values in files of their owner, and come back with their documents', async () => {
    await secrets.define(xml())
    await secrets.setValue(UUID, VALUE)
    expect(statSync(directory).mode & 0o777).toBe(0o700)
    expect(readdirSync(directory)).toEqual([`${UUID}.base64`])
    expect(statSync(join(directory, `${UUID}.base64`)).mode & 0o777).toBe(0o600)
    expect(readFileSync(join(directory, `${UUID}.base64`), 'utf8')).toBe(VALUE.toString('base64'))
    const [call] = secrets.config()
    expect(JSON.stringify(call)).not.toContain(VALUE.toString('base64'))

    const again = new Secrets(directory)
    await again.define((call!.params as { xml: string }).xml)
    expect(await again.tell('client.kvm')).toEqual(VALUE)
    expect(logged.join()).not.toContain(VALUE.toString())
  })

  it('are in memory when they are ephemeral, and not saved', async () => {
    await secrets.define(xml({ isEphemeral: true }))
    await secrets.setValue(UUID, VALUE)
    expect(await secrets.tell(UUID)).toEqual(VALUE)
    expect(() => readdirSync(directory)).toThrow('ENOENT')
    expect(secrets.config()).toEqual([])
    const value = await secrets.valueFor('p', {
      type: 'ceph',
      username: 'kvm',
      secret: { usage: 'client.kvm' },
    })
    expect(value.file).toBeUndefined()
  })

  it('become ephemeral with their values', async () => {
    await secrets.define(xml())
    await secrets.setValue(UUID, VALUE)
    await secrets.define(xml({ isEphemeral: true }))
    expect(readdirSync(directory)).toEqual([])
    expect(await secrets.tell(UUID)).toEqual(VALUE)
  })

  it('are told to nobody when they are private, but to their pool', async () => {
    await secrets.define(xml({ isPrivate: true }))
    await secrets.setValue(UUID, VALUE)
    await expect(secrets.tell(UUID)).rejects.toThrow(`secret ${UUID} is private`)
    await expect(secrets.define(xml())).rejects.toThrow('is private, and stays it')
    const { bytes, file } = await secrets.valueFor('p', {
      type: 'ceph',
      username: 'kvm',
      secret: { uuid: UUID },
    })
    expect([bytes, file]).toEqual([VALUE, join(directory, `${UUID}.base64`)])
  })

  it('say what is missing to the pool that names them', async () => {
    const auth = { type: 'ceph', username: 'kvm', secret: { uuid: UUID } } as const
    await expect(secrets.valueFor('p', auth)).rejects.toThrow(`the secret ${UUID}, which there is not`)
    await secrets.define(xml())
    await expect(secrets.valueFor('p', auth)).rejects.toThrow(`secret ${UUID} has no value yet`)
    await expect(secrets.valueFor('p', { ...auth, type: 'chap' })).rejects.toThrow(
      `needs a secret for iscsi, and ${UUID} is for ceph`,
    )
  })

  it('are for one thing each', async () => {
    await secrets.define(xml())
    const other = UUID.replace(/a$/, 'b')
    await expect(secrets.define(xml({ uuid: other }))).rejects.toThrow(
      `secret ${UUID} is for ceph client.kvm already`,
    )
    await secrets.define(xml({ uuid: other, type: 'iscsi' }))
    expect((await secrets.list()).map(({ uuid }) => uuid)).toEqual([UUID, other])
  })

  it('go with their values', async () => {
    await secrets.define(xml())
    await secrets.setValue(UUID, VALUE)
    await secrets.undefine(UUID)
    expect(readdirSync(directory)).toEqual([])
    expect(await secrets.list()).toEqual([])
  })

  it.each([0, 65537])('take no value of %i bytes', async size => {
    await secrets.define(xml())
    await expect(secrets.setValue(UUID, Buffer.alloc(size))).rejects.toThrow(`has ${size} bytes`)
  })

  it('have UUIDs as names of their files, whatever a document says', async () => {
    await expect(secrets.define(xml({ uuid: '../../etc/passwd' }))).rejects.toThrow()
    await expect(secrets.setValue('../x', VALUE)).rejects.toThrow('there is no secret ../x')
  })
})
