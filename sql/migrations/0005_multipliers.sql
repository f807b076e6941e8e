-- What other tiers of service than the default one cost. The release before adds prices without it, and reads none.
ALTER TABLE prices ADD COLUMN multipliers jsonb NOT NULL DEFAULT '{}';
