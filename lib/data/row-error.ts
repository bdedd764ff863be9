/** Why a row can't be used: it is reported, counted and skipped, and never leaves the readers. */
export class RowError extends Error {}
