/**
 * The process of a vhost-user load: `node vhost-load.js split|packed SOCKET…` connects to each socket, says that it is
 * ready, and loads the first one with each `Work` that it is sent. It answers with a `Report`.
 */
import { FrontEnd, type Work } from './vhost-front-end.ts'

const [layout, ...sockets] = process.argv.slice(2)
const frontEnds = sockets.map(path => new FrontEnd(path, layout === 'packed'))
process.on('message', (work: Work) => process.send!(frontEnds[0]!.run(work)))
process.send!('ready')
