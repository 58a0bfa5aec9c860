// The internal service of the tutorial: orders in memory, over plain HTTP.
//
// It believes the Countersign-* headers, and it may, for one reason only: nobody but the gateway can reach this port.
// Here that is the loopback address; elsewhere a firewall rule or a network policy that lets in the gateway's address
// and no other. The gateway removes every such header that a client sends, and sets them only after Stripe's signature
// and the route's policy held. Whoever can reach this port past the gateway can be anyone.

import { createServer } from 'node:http';

const ADDRESS = '127.0.0.1';
const PORT = 8080;
const BODY_LIMIT_BYTES = 64 * 1024;

const orders = new Map();

createServer(async (request, response) => {
  const caller = {
    user: request.headers['countersign-user'],
    account: request.headers['countersign-account'],
    roles: (request.headers['countersign-roles'] ?? '').split(',').filter((role) => role !== ''),
    signed: request.headers['countersign-signed'],
  };
  if (caller.user === undefined || caller.account === undefined) {
    // Not through the gateway: a mistake in the network, worth a look.
    return answer(response, 403, { error: 'this request did not come through the gateway' });
  }

  const [path] = request.url.split('?');
  const [, id, note] = /^\/api\/orders\/([A-Za-z0-9_]+)(\/note)?$/.exec(path) ?? [];
  if (id === undefined) {
    return answer(response, 404, { error: 'no such order' });
  }
  const order = orderOf(caller.account, id);

  if (request.method === 'GET' && note === undefined) {
    return answer(response, 200, order);
  }
  if (request.method === 'POST' && note !== undefined) {
    // What is written must be what Stripe signed, not only sent along with a signed identity. The route's
    // signed = "body" sees to it already; this line stays true when somebody edits that route.
    if (caller.signed !== 'body') {
      return answer(response, 403, { error: 'a note must be covered by the signature' });
    }
    // Roles are those that this request proved; the user may hold more. An empty list says nothing against him.
    const by = caller.roles.length === 0 ? caller.user : `${caller.user} (${caller.roles.join(', ')})`;
    const text = await noteIn(request);
    if (text === undefined) {
      return answer(response, 422, { error: 'a note is a JSON object with a text in "note"' });
    }
    order.notes.push({ text, by });
    return answer(response, 201, order);
  }
  return answer(response, 405, { error: 'GET an order, or POST to its /note' });
}).listen(PORT, ADDRESS, () => console.log(`orders on http://${ADDRESS}:${PORT}/api/orders/`));

/** The order of an account. This example has one for every id, so that any invoice of a test account shows something. */
function orderOf(account, id) {
  const key = `${account}/${id}`;
  if (!orders.has(key)) {
    orders.set(key, { id, status: 'packed', carrier: 'DHL', notes: [] });
  }
  return orders.get(key);
}

/** The text in the request's body, or `undefined` if there is none, or the client went away. */
async function noteIn(request) {
  const chunks = [];
  let bytes = 0;
  try {
    for await (const chunk of request) {
      bytes += chunk.length;
      if (bytes > BODY_LIMIT_BYTES) {
        return undefined;
      }
      chunks.push(chunk);
    }
    const { note } = JSON.parse(Buffer.concat(chunks).toString('utf8'));
    return typeof note === 'string' && note !== '' ? note : undefined;
  } catch {
    return undefined;
  }
}

function answer(response, status, value) {
  // What one person may see is no matter for a shared cache. CORS headers are the gateway's business, not ours.
  response.writeHead(status, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' });
  response.end(JSON.stringify(value));
}
