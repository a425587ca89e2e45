import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { recordPassword } from '../../src/volume/iscsi-records.ts'

const TARGET = 'iqn.2026-01.org.example:store'
// As iscsiadm 2.1.8 prints it.
const shown = (group: string): string => `# BEGIN RECORD 2.1.8
node.name = ${TARGET}
node.tpgt = ${group}
iface.iscsi_ifacename = qpair-0123abcd
node.session.auth.authmethod = CHAP
node.session.auth.password = ********
node.conn[0].address = 192.0.2.7
node.conn[0].port = 3260
# END RECORD
`

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-iscsi-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

function record(path: string, text: string): string {
  const file = join(directory, TARGET, path)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, text, { mode: 0o644 })
  return file
}
const record1 =
  '# BEGIN RECORD\nnode.session.auth.username = kvm\nnode.session.auth.password = old\n# END RECORD\n'

describe('recordPassword', () => {
  it.each([
    ['1', '192.0.2.7,3260,1/qpair-0123abcd'],
    ['-1', '192.0.2.7,3260'],
  ])('writes it where the login reads it, for its owner alone (portal group %s)', async (group, path) => {
    const file = record(path, record1)
    await recordPassword(TARGET, shown(group), 'a b#c=d\\"', ['/nowhere', directory])
    expect(readFileSync(file, 'utf8')).toBe(
      '# BEGIN RECORD\nnode.session.auth.username = kvm\n# END RECORD\nnode.session.auth.password = a b#c=d\\"\n',
    )
    expect(statSync(file).mode & 0o777).toBe(0o600)
  })

  it.each([' x', 'x ', 'x\nnode.startup = automatic', ''.padEnd(3, '\0')])(
    'refuses a password that would be read otherwise: %j',
    async password => {
      const file = record('192.0.2.7,3260,1/qpair-0123abcd', record1)
      await expect(recordPassword(TARGET, shown('1'), password, [directory])).rejects.toMatchObject({
        code: 'EINVAL',
      })
      expect(readFileSync(file, 'utf8')).toBe(record1)
    },
  )

  it('says where it has looked', async () => {
    await expect(recordPassword(TARGET, shown('1'), 'x', [directory])).rejects.toThrow(
      `no record of ${TARGET} below ${directory}`,
    )
  })
})
