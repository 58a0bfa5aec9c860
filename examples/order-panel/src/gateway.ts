import type { ExtensionContextValue } from '@stripe/ui-extension-sdk/context';
import { fetchStripeSignature } from '@stripe/ui-extension-sdk/utils';

/** The gateway's route. The same URL stands in `stripe-app.json` under `connect-src`; the browser blocks any other. */
const ORDERS = 'https://gateway.example.com:8443/shipping/orders/';

const TIMEOUT_MILLISECONDS = 30_000;

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

/** What is signed beside the identity, in the order in which it is sent. The ids are added last, by `post`. */
type Extras = { [key: string]: Json } & { user_id?: never; account_id?: never };

type UserContext = ExtensionContextValue['userContext'];

/** A refusal of the gateway: `application/problem+json`, RFC 9457. */
interface Problem {
  title: string;
  status: number;
  code: string;
  detail: string;
  request_id: string;
}

/** The request got an answer, and the answer is no. */
export class Refused extends Error {
  constructor(
    readonly code: string,
    readonly detail: string,
    readonly requestId: string,
  ) {
    super(detail);
    this.name = 'Refused';
  }
}

/**
 * Reads `path` below the route.
 *
 * A GET has no body, so the ids travel in headers. The signature is fetched for this request and not kept: the gateway
 * takes it for five minutes only.
 */
export async function get<T>(user: UserContext, path: string): Promise<T> {
  const { user_id, account_id } = identityOf(user);
  const signature = await fetchStripeSignature();
  return send<T>(path, {
    method: 'GET',
    headers: { 'Stripe-Signature': signature, 'Stripe-User-Id': user_id, 'Stripe-Account-Id': account_id },
  });
}

/**
 * Sends `extras` to `path` below the route, covered by the signature.
 *
 * What Stripe signs is the extras in our order and then `user_id` and `account_id`. The body is the same object, the ids
 * last, so the signature covers every byte of it.
 */
export async function post<T>(user: UserContext, path: string, extras: Extras): Promise<T> {
  const { user_id, account_id } = identityOf(user);
  const signed: Extras = { ...extras, ...rolesOf(user) };
  const signature = await fetchStripeSignature(signed);
  return send<T>(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'Stripe-Signature': signature },
    body: JSON.stringify({ ...signed, user_id, account_id }),
  });
}

/** One sentence for the person in front of the panel. */
export function explain(error: unknown): string {
  if (error instanceof Refused) {
    return `${error.detail} (${error.code}, request ${error.requestId})`;
  }
  if (error instanceof DOMException && error.name === 'TimeoutError') {
    return 'The gateway did not answer in time.';
  }
  if (error instanceof TypeError) {
    // The browser tells scripts no more than this; the reason is on its console.
    return 'The browser could not reach the gateway: see its console for a blocked connect-src, certificate or network.';
  }
  return error instanceof Error ? error.message : String(error);
}

async function send<T>(path: string, init: RequestInit): Promise<T> {
  const response = await fetch(ORDERS + path, { ...init, signal: AbortSignal.timeout(TIMEOUT_MILLISECONDS) });
  if (!response.ok) {
    throw await refusal(response);
  }
  return (await response.json()) as T;
}

/** The gateway's own refusals explain themselves; an error of the service behind it has at least a request id. */
async function refusal(response: Response): Promise<Refused> {
  const requestId = response.headers.get('X-Request-Id') ?? 'unknown';
  const type = response.headers.get('Content-Type') ?? '';
  if (type.startsWith('application/problem+json')) {
    const problem = (await response.json()) as Partial<Problem>;
    return new Refused(
      problem.code ?? String(response.status),
      problem.detail ?? problem.title ?? 'The request was refused.',
      problem.request_id ?? requestId,
    );
  }
  return new Refused(String(response.status), `The order system answered ${response.status}.`, requestId);
}

/** `id` is absent where the app is embedded outside the Dashboard: there is no user to vouch for. */
function identityOf(user: UserContext): { user_id: string; account_id: string } {
  if (user.id === undefined) {
    throw new Error('No Dashboard user is signed in.');
  }
  return { user_id: user.id, account_id: user.account.id };
}

/** The user's roles under the name that Stripe checks before it signs. Old versions of the SDK know no role's `id`. */
function rolesOf(user: UserContext): Extras {
  if (user.roles === undefined) {
    return {};
  }
  return { stripe_roles: user.roles.map(({ id, name, type }) => ({ ...(id !== undefined && { id }), name, type })) };
}
