import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Host } from '../../../src/host/host.ts'
import { type Firmware, findFirmware, makeVariables } from '../../../src/vm/run/firmware.ts'

/** The form of QEMU's docs/interop/firmware.json. */
const description = (name: string, features: readonly string[], machines = ['pc-q35-*']): object => ({
  description: name,
  'interface-types': ['uefi'],
  mapping: {
    device: 'flash',
    executable: { filename: `/f/${name}.fd`, format: 'raw' },
    'nvram-template': { filename: `/f/${name}-vars.fd`, format: 'raw' },
  },
  targets: [{ architecture: 'x86_64', machines }],
  features,
  tags: [],
})

let root: string
let host: Host
const describeAs = (path: string, content: object | string): void => {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), typeof content === 'string' ? content : JSON.stringify(content))
}
const find = (word: string, machine = 'q35'): Firmware =>
  findFirmware(word, { machine, variables: '/s/nvram/web.fd', host })

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'qpair-firmware-'))
  host = new Host({ root, arch: 'x64' })
  const share = '/usr/share/qemu/firmware'
  describeAs(`${share}/40-keys.json`, description('keys', ['secure-boot', 'enrolled-keys', 'requires-smm']))
  describeAs(`${share}/50-secure.json`, description('secure', ['secure-boot', 'requires-smm']))
  describeAs(`${share}/60-plain.json`, description('plain', ['acpi-s3'], ['pc-i440fx-*', 'pc-q35-*']))
  describeAs(`${share}/70-later.json`, description('later', []))
  describeAs(`${share}/10-odd.json`, '{')
  // A kind without variables of its own.
  describeAs(`${share}/20-sev.json`, {
    ...description('sev', []),
    mapping: { device: 'memory', filename: '/f/sev.fd' },
  })
})
afterEach(() => rmSync(root, { recursive: true }))

it('is the first that is described for the machine, with or without Secure Boot', () => {
  expect(find('uefi')).toEqual({
    kind: 'flash',
    code: { path: '/f/plain.fd', format: 'raw' },
    variables: { path: '/s/nvram/web.fd', format: 'raw', template: '/f/plain-vars.fd' },
    needsSmm: false,
  })
  expect(find('uefi', 'pc-q35-7.2')).toEqual(find('uefi'))
  expect(find('uefi-secure')).toMatchObject({ code: { path: '/f/keys.fd' }, needsSmm: true })
})

it('is what the administrator describes in /etc instead', () => {
  describeAs('/etc/qemu/firmware/60-plain.json', '')
  expect(find('uefi')).toMatchObject({ code: { path: '/f/later.fd' } })
  describeAs('/etc/qemu/firmware/60-plain.json', description('own', []))
  expect(find('uefi')).toMatchObject({ code: { path: '/f/own.fd' } })
})

it('is that of a path, with variables when it is described', () => {
  expect(find('/f/secure.fd')).toMatchObject({
    ...{ kind: 'flash', needsSmm: true, variables: { template: '/f/secure-vars.fd' } },
  })
  expect(find('/f/seabios.bin')).toEqual({ kind: 'bios', path: '/f/seabios.bin' })
})

it('says which machines it is for, or which packages have it', () => {
  expect(() => find('uefi-secure', 'pc')).toThrow(
    /no firmware uefi-secure for machine pc: it is for machines pc-q35-\*$/,
  )
  host = new Host({ root: join(root, 'empty'), arch: 'x64' })
  expect(() => find('uefi')).toThrow(/no firmware uefi for machine q35: apt-get install ovmf/)
})

it('has variables of its own for each guest, which stay', async () => {
  const template = join(root, 'template.fd')
  const path = join(root, 'nvram/web.fd')
  const variables = { path, template, format: 'raw' }
  writeFileSync(template, 'empty')
  expect(await makeVariables(variables)).toBe(true)
  writeFileSync(path, 'boot1')
  expect(await makeVariables(variables)).toBe(false)
  expect(readFileSync(path, 'utf8')).toBe('boot1')
  writeFileSync(path, 'another kind')
  await expect(makeVariables(variables)).rejects.toThrow(
    /have 12 bytes and are of another firmware.* have 5\./,
  )
})
