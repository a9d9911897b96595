// What the tests of both packages share: where the service is, and sockets that lead nowhere else.
import net from 'node:net';

export const url = process.env.SITE_URL;
export const key = process.env.SITE_KEY;

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0];
  const host = typeof options === 'object' ? options.host : args[1];
  if (typeof options === 'object' && options.path === undefined && !['127.0.0.1', '::1', 'localhost'].includes(host)) {
    throw new Error(`a client wanted to talk to ${host}`);
  }
  return connect.apply(this, args);
};

/** How many predictions hold a slot. */
async function running() {
  const answer = await fetch(`${url}/metrics`, { headers: { Authorization: process.env.SITE_ADMIN } });
  const text = await answer.text();
  return [...text.matchAll(/^aprendiz_running_predictions\{[^}]*\} (\S+)$/gm)].reduce((sum, found) => sum + Number(found[1]), 0);
}

async function until(holds) {
  for (let tries = 0; tries < 250; tries += 1) {
    if (holds(await running())) return;
    await new Promise((done) => setTimeout(done, 20));
  }
  throw new Error('it did not come to that');
}

/** Waits until no prediction holds a slot. */
export const idle = () => until((count) => count === 0);

/** Waits until one does. */
export const busy = () => until((count) => count > 0);
