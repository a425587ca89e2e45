/** One connection to the daemon for the length of one command. */
import { connect } from '../rpc/client.ts'
import type { AnyClient } from './config-file.ts'

export interface Connection {
  readonly address: string
  readonly timeoutMs: number
  readonly retries: number
}

export async function withClient<Result>(
  { address, timeoutMs, retries }: Connection,
  use: (client: AnyClient) => Promise<Result>,
): Promise<Result> {
  const client = await connect<[]>(address, { timeoutMs, retries })
  try {
    return await use(client)
  } finally {
    client.close()
  }
}
