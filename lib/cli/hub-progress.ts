import type { HubHooks } from '../model/hub.js'
import type { Invocation } from './command.js'
import { mebibytes } from './output.js'
import { Progress } from './progress.js'

/** Shows the download of a preset's weights. */
export function hubProgress({ signal, note, quiet }: Invocation): Required<HubHooks> {
  let bar: Progress | null = null
  let current = ''
  return {
    signal,
    onNotice: message => (bar ? bar.log(message) : note(message)),
    onProgress: (file, done, total) => {
      if (file !== current) {
        bar?.end()
        bar = new Progress(file, total, quiet ? null : process.stderr)
        current = file
      }
      bar!.update(done, [mebibytes(done)], 0)
      if (done === total) bar!.end()
    },
  }
}
