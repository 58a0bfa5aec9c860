import type { ExtensionContextValue } from '@stripe/ui-extension-sdk/context';
import {
  Banner,
  Box,
  Button,
  ContextView,
  PropertyList,
  PropertyListItem,
  Spinner,
  TextField,
} from '@stripe/ui-extension-sdk/ui';
import { useEffect, useState } from 'react';

import { explain, get, post } from '../gateway';

interface Order {
  id: string;
  status: string;
  carrier: string;
  notes: { text: string; by: string }[];
}

/** The order behind the invoice that the Dashboard shows, and a field to annotate it. */
const OrderPanel = ({ userContext, environment }: ExtensionContextValue) => {
  const invoice = environment.objectContext?.id;
  const [order, setOrder] = useState<Order>();
  const [note, setNote] = useState('');
  const [pending, setPending] = useState(false);
  const [problem, setProblem] = useState<string>();

  useEffect(() => {
    if (invoice === undefined) {
      return;
    }
    // What is on the screen belongs to the invoice before.
    setOrder(undefined);
    setProblem(undefined);
    let shown = true;
    get<Order>(userContext, invoice)
      .then((found) => shown && setOrder(found))
      .catch((error: unknown) => shown && setProblem(explain(error)));
    return () => {
      shown = false;
    };
    // The user stays who he is while the panel is open; another invoice is another order.
  }, [invoice]);

  const add = async () => {
    if (invoice === undefined) {
      return;
    }
    setPending(true);
    setProblem(undefined);
    try {
      setOrder(await post<Order>(userContext, `${invoice}/note`, { note }));
      setNote('');
    } catch (error) {
      setProblem(explain(error));
    } finally {
      setPending(false);
    }
  };

  return (
    <ContextView
      title="Order"
      description={invoice}
      banner={problem === undefined ? undefined : <Banner type="critical" title="No answer" description={problem} />}
    >
      {order === undefined ? (
        problem === undefined && <Spinner />
      ) : (
        <Box css={{ stack: 'y', gap: 'medium' }}>
          <PropertyList>
            <PropertyListItem label="Status" value={order.status} />
            <PropertyListItem label="Carrier" value={order.carrier} />
            {order.notes.map((entry, place) => (
              <PropertyListItem key={place} label={entry.by} value={entry.text} />
            ))}
          </PropertyList>
          <TextField label="Note" value={note} onChange={(event) => setNote(event.target.value)} />
          <Button type="primary" pending={pending} disabled={note === ''} onPress={add}>
            Add
          </Button>
        </Box>
      )}
    </ContextView>
  );
};

export default OrderPanel;
