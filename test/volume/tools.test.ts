import { describe, expect, it } from 'vitest'
import { install, runTool } from '../../src/volume/tools.ts'

const shell = (script: string, options = {}): Promise<string> =>
  runTool('pool p', 'sh', ['-c', script], options)

describe('runTool', () => {
  it('answers what the program wrote', async () => {
    expect(await shell('echo yes')).toBe('yes\n')
  })

  it('names the packages of a program that is not there', async () => {
    const packages = { debian: 'a', fedora: 'b', suse: 'c' }
    await expect(runTool('pool p', 'no-such-program', [], { packages })).rejects.toMatchObject({
      code: 'ENOENT',
      message:
        'pool p: there is no no-such-program on this machine; install a (Debian, Ubuntu), b (Fedora) or c (SUSE)',
    })
  })

  it.each([
    ['target is busy.', 'EBUSY'],
    ['No space left on device', 'ENOSPC'],
    ['Permission denied', 'EPERM'],
    ['x already exists', 'EEXIST'],
    ['out of cheese', 'EIO'],
  ])('understands %j', async (said, code) => {
    await expect(shell(`echo '${said}' >&2; exit 1`)).rejects.toMatchObject({ code })
  })

  it('says it in one line, and what to do about it', async () => {
    const remedy = (stderr: string): string => `It has ${stderr.split('\n').length} lines`
    await expect(shell('echo first. >&2; echo second. >&2; exit 1', { remedy })).rejects.toThrow(
      /^pool p: first; second\. It has 2 lines$/,
    )
  })
})

describe('install', () => {
  it('knows who starts whom', () => {
    expect(install('mount.glusterfs')).toContain('glusterfs-client (Debian, Ubuntu)')
  })
})
