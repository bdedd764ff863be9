/**
 * A part of a document, as readers give them: text, a special token by its text, the end-of-text token (inside the
 * document), or the document's end. A long document comes as several texts, cut before white space that follows a
 * non-space.
 */
export type Piece = { kind: 'text' | 'special'; text: string } | { kind: 'eos' | 'end' }

/** The end of a document. */
export const END: Piece = { kind: 'end' }
