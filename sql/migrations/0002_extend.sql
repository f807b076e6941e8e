-- Holds that grow with their stream: what wallet_apply answers to an extension that it grants.
ALTER TYPE wallet_outcome ADD VALUE 'extended' AFTER 'held';
