/** Methods of secrets, by virsh's names. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import type { Secret, Secrets } from '../secrets.ts'

export interface SecretContext {
  readonly secrets: Secrets
}

const NO_SECRET = { ENOENT: 'there is no such secret' } as const
const secretName = z.string().min(1).describe('The secret: its UUID, or what it is for')
const bySecret = z.object({ secret: secretName })
const SECRET = { positional: ['secret'] } as const

const secretRow = z.object({
  uuid: z.string(),
  usage_type: z.string().optional().describe('What it is for: ceph, iscsi …'),
  usage: z.string().optional(),
  has_value: z.boolean(),
  ephemeral: z.boolean().describe('It is gone when the daemon ends'),
  private: z.boolean().describe('Its value is told to nobody'),
  description: z.string().optional(),
})
type SecretRow = z.output<typeof secretRow>

export function toRow({ uuid, document, hasValue }: Secret): SecretRow {
  const { usage, description } = document
  return {
    uuid,
    ...(usage === undefined ? {} : { usage_type: usage.type, usage: usage.id }),
    ...{ has_value: hasValue, ephemeral: document.isEphemeral, private: document.isPrivate },
    ...(description === undefined ? {} : { description }),
  }
}

/** As virsh's `secret-list`, and whether there is a value. */
const columns = [
  { title: 'UUID', value: (row: SecretRow) => row.uuid },
  {
    title: 'Usage',
    value: (row: SecretRow) => (row.usage === undefined ? 'Unused' : `${row.usage_type} ${row.usage}`),
  },
  { title: 'Value', value: (row: SecretRow) => (row.has_value ? 'set' : '-') },
]

const secretDefine = method({
  name: 'secret_define',
  summary:
    'Keeps a secret of this document, or changes that of one that is there. Its value comes apart from it.',
  params: z.object({
    xml: z
      .string()
      .min(1)
      .describe("The secret's libvirt document; on the command line the file that has it, - for stdin"),
  }),
  result: secretRow,
  errors: {
    EINVAL: 'the document is not one of a secret, with the line and the reason',
    EEXIST: 'another secret is for the same',
    EPERM: 'a private secret would not be private any more',
  },
  saves: true,
  cli: { positional: ['xml'], files: ['xml'], text: ({ uuid }) => `Secret ${uuid} created\n` },
  run: async ({ xml }, { secrets }: SecretContext) => toRow(await secrets.define(xml)),
})

const secretSetValue = method({
  name: 'secret_set_value',
  summary: 'Sets the value of a secret.',
  params: z.object({
    secret: secretName,
    base64: z
      .string()
      .optional()
      .describe('The value in base64, which everybody on the machine may see typed'),
    file: z.string().optional().describe('The same; on the command line the file that has it, - for stdin'),
    plain: z.boolean().default(false).describe('The file has the value itself, and not in base64'),
  }),
  result: done,
  errors: { ...NO_SECRET, EINVAL: 'no value is given, two are, or it is not base64' },
  cli: { positional: ['secret', 'base64'], files: ['file'], text: () => 'Secret value set\n' },
  async run({ secret, base64, file, plain }, { secrets }: SecretContext) {
    await secrets.setValue(secret, givenValue(secret, { base64, file, plain }))
    return true as const
  },
})

interface GivenValue {
  readonly base64: string | undefined
  readonly file: string | undefined
  readonly plain: boolean
}

/** Never with the value in the message. */
function givenValue(secret: string, { base64, file, plain }: GivenValue): Buffer {
  if ((base64 === undefined) === (file === undefined)) {
    throw new RpcError('EINVAL', `secret ${secret}: give its value in base64, or --file, and not both`)
  }
  if (plain && file !== undefined) return Buffer.from(file)
  const text = (base64 ?? file)!.trim()
  if (/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text))
    return Buffer.from(text, 'base64')
  throw new RpcError(
    'EINVAL',
    `secret ${secret}: the value is not base64; --file with --plain takes any text`,
  )
}

const secretGetValue = method({
  name: 'secret_get_value',
  summary: 'Tells the value of a secret that is not private, in base64.',
  params: bySecret,
  result: z.string(),
  errors: { ...NO_SECRET, EPERM: 'it is private', ENODATA: 'it has no value' },
  cli: SECRET,
  run: async ({ secret }, { secrets }: SecretContext) => (await secrets.tell(secret)).toString('base64'),
})

const secretList = method({
  name: 'secret_list',
  summary: 'Lists the secrets, without their values.',
  params: z.object({}),
  result: z.array(secretRow),
  cli: { columns },
  run: async (_, { secrets }: SecretContext) => (await secrets.list()).map(toRow),
})

const secretDumpxml = method({
  name: 'secret_dumpxml',
  summary: 'Prints the libvirt document of a secret, which does not have its value.',
  params: bySecret,
  result: z.string(),
  errors: NO_SECRET,
  concurrent: true,
  cli: SECRET,
  run: ({ secret }, { secrets }: SecretContext) => secrets.xmlOf(secret),
})

const secretUndefine = method({
  name: 'secret_undefine',
  summary: 'Forgets a secret and its value.',
  params: bySecret,
  result: done,
  errors: NO_SECRET,
  saves: true,
  cli: { ...SECRET, text: (_, { secret }) => `Secret ${secret} deleted\n` },
  async run({ secret }, { secrets }: SecretContext) {
    await secrets.undefine(secret)
    return true as const
  },
})

export const secretMethods = [
  secretDefine,
  secretSetValue,
  secretGetValue,
  secretList,
  secretDumpxml,
  secretUndefine,
]
