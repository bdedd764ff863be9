import { TrainCoreError } from '../errors.js'
import { readBytes } from './bytes.js'
import { cutBeforeSpace } from './cut.js'
import type { DataFile } from './files.js'
import { END, type Piece } from './piece.js'

/** Text given out at once [UTF-16 units]. */
const PIECE_LENGTH = 1 << 16
/** Longest run without a place to cut [UTF-16 units]; V8's longest string is about twice this. */
const LONGEST_RUN = 1 << 28

/**
 * Reads a text file: one document, in pieces. A byte-order mark at its beginning is left out.
 *
 * Throws ERR_DATA where the file is not UTF-8, ERR_FILE where it can't be read.
 */
export async function* readText(file: DataFile): AsyncGenerator<Piece> {
  const utf8 = new TextDecoder('utf-8', { fatal: true })
  const decode = (bytes?: Uint8Array): string => {
    try {
      return bytes ? utf8.decode(bytes, { stream: true }) : utf8.decode()
    } catch (cause) {
      throw new TrainCoreError('ERR_DATA', `[data] ${file.path} is not UTF-8 text (near byte ${offset})`, {
        help: 'convert it, e.g. with iconv -t UTF-8',
        cause,
      })
    }
  }
  let offset = 0
  let text = ''
  let searched = PIECE_LENGTH
  for await (const bytes of readBytes(file)) {
    text += decode(bytes)
    offset += bytes.length
    while (text.length > searched) {
      const cut = cutBeforeSpace(text, 0, searched)
      if (cut < text.length) {
        yield { kind: 'text', text: text.slice(0, cut) }
        text = text.slice(cut)
        searched = PIECE_LENGTH
      } else searched = text.length
    }
    if (text.length > LONGEST_RUN) {
      throw new TrainCoreError('ERR_DATA', `[data] ${file.path} has ${LONGEST_RUN} characters without any white space`)
    }
  }
  text += decode()
  if (text) yield { kind: 'text', text }
  yield END
}
