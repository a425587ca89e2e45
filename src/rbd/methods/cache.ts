/** Which RBD cache is in force, and why. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { answerOf, answerText, cacheAnswer } from '../cache/answer.ts'
import { explain, type Question } from '../cache/explain.ts'
import { CACHE_MODES, RULES } from '../cache/rules.ts'
import { readLive } from '../cache/sources.ts'
import type { ClusterOptions } from '../cluster.ts'
import { pathOf } from '../image.ts'
import type { RbdImages } from '../images.ts'
import { parseRbdName } from '../rbd-name.ts'
import type { RbdContext } from './params.ts'

export const rbdCacheExplain = method({
  name: 'rbd_cache_explain',
  summary: 'Explains which RBD cache is in force for an image, from where, and what can be lost.',
  params: z.object({
    image: z.string().min(1).describe('An RBD device, POOL/IMAGE, or a name as QEMU has it: rbd:POOL/IMAGE…'),
    cache_mode: z.enum(CACHE_MODES).default('writeback').describe("The guest's cache mode"),
    conf: z.string().min(1).optional().describe('A ceph.conf in place of the one that would be read'),
    rule: z.enum(RULES).optional().describe('Only this rule; all side by side when absent'),
    user_id: z.string().min(1).optional().describe('Without "client.", for an image that is not open here'),
    ceph_release: z
      .string()
      .regex(/^\d+(\.\d+)*$/, 'a release such as 0.80 or 16.2')
      .optional()
      .describe("Whose librbd's defaults to assume; this machine's when absent"),
  }),
  result: cacheAnswer,
  errors: {
    ENODEV: 'no RBD device has that name, and it is no name of an image',
    ENOENT: 'the ceph.conf cannot be read',
  },
  concurrent: true,
  cli: { positional: ['image'], text: answerText },
  async run({ image, cache_mode: mode, conf, rule, user_id, ceph_release }, { rbd }: RbdContext) {
    const { path, bdev, cluster, live } = await subjectOf(rbd, image, user_id)
    const explanation = await explain({
      cluster: conf === undefined ? cluster : { ...cluster, file: conf },
      mode,
      rules: rule === undefined ? RULES : [rule],
      release: ceph_release,
      live,
      isOtherFile: conf !== undefined && conf !== cluster.file,
    })
    return answerOf({ path, bdev, user: cluster.user ?? 'admin', mode }, explanation)
  },
})

interface Subject {
  readonly path: string
  readonly bdev: string | null
  readonly cluster: ClusterOptions
  readonly live: Question['live']
}

async function subjectOf(rbd: RbdImages, name: string, user: string | undefined): Promise<Subject> {
  const isQemuName = /^(rbd|json):/.test(name)
  if (!isQemuName && !name.includes('/')) return openSubject(rbd, name, user)
  const parsed = parseRbdName(isQemuName ? name : `rbd:${name}`)
  const { file, options } = parsed
  const cluster = {
    user: user ?? parsed.user,
    options,
    file,
    searches: file === undefined,
    keyFile: undefined,
  }
  return { path: pathOf(parsed), bdev: null, cluster, live: undefined }
}

async function openSubject(rbd: RbdImages, name: string, user: string | undefined): Promise<Subject> {
  const opened = rbd.opened(name)
  const { info, options } = opened
  const cluster = typeof options.cluster === 'string' ? rbd.clusters.get(options.cluster) : options.cluster
  const { user: own = 'admin' } = cluster
  if (user !== undefined && user !== own) {
    throw new RpcError(
      'INVALID_PARAMS',
      `${name} is open as client.${own}, not as client.${user}: leave user_id out`,
    )
  }
  const path = pathOf(options)
  return { path, bdev: info.name, cluster, live: await opened.use(image => readLive(image, path)) }
}
