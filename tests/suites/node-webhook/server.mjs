// The common recipe for Stripe's events: Express, stripe-node's constructEvent over the raw body, an insert into PostgreSQL that leaves alone what
// is there, and the answer. Plain HTTP.
//
//   node server.mjs PORT POSTGRES_URL
import express from 'express';
import pg from 'pg';
import Stripe from 'stripe';

const [port, url] = process.argv.slice(2);
const secret = process.env.STRIPE_WEBHOOK_SECRET;
const stripe = new Stripe('sk_test_unused');
const pool = new pg.Pool({ connectionString: url });

await pool.query('CREATE TABLE IF NOT EXISTS events (id text PRIMARY KEY, type text NOT NULL, body text NOT NULL, received timestamptz NOT NULL DEFAULT now())');

const insert = 'INSERT INTO events (id, type, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING';
const app = express();
app.post('/stripe/events', express.raw({ type: 'application/json' }), async (request, response) => {
  let event;
  try {
    event = stripe.webhooks.constructEvent(request.body, request.headers['stripe-signature'], secret);
  } catch (error) {
    response.status(400).send(error.message);
    return;
  }
  await pool.query(insert, [event.id, event.type, request.body.toString()]);
  response.json({ received: true });
});
app.listen(Number(port), '127.0.0.1', () => console.log('listening'));
