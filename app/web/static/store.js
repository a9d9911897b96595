// What this tab remembers across a reload or a new login: the unsent text and the visible conversation.
// Lives in sessionStorage (this tab only), belongs to one user, and goes at log-out.

const KEY = "aprendiz.chat";
const MAX_TURNS = 50;

function read() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    return kept !== null && typeof kept === "object" && Array.isArray(kept.turns) ? kept : null;
  } catch {
    // Storage is off, or its content is not ours: nothing is remembered.
    return null;
  }
}

/** Remembers `{user, draft, turns, ...}`, the newest turns only. */
export function keep(state) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ ...state, turns: state.turns.slice(-MAX_TURNS) }));
  } catch {
    // Storage is off or full: the page works on, and a reload starts empty.
  }
}

/** What was kept for this user, or null. Another user's is deleted, unread. */
export function restore(user) {
  const kept = read();
  if (kept !== null && kept.user !== user) {
    forget();
    return null;
  }
  return kept;
}

/** Deletes what was kept. */
export function forget() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // Storage is off: nothing was kept.
  }
}
