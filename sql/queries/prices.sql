-- name: model_upsert
-- Store what bounds a model's calls.
INSERT INTO models (model, context_tokens_max, output_tokens_max, hidden_reasoning, owned_by)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::boolean[], $5::text[])
ON CONFLICT (model) DO UPDATE SET
    context_tokens_max = excluded.context_tokens_max,
    output_tokens_max = excluded.output_tokens_max,
    hidden_reasoning = excluded.hidden_reasoning,
    owned_by = excluded.owned_by;

-- name: model_list
-- Every model with its limits.
SELECT model, context_tokens_max, output_tokens_max, hidden_reasoning, owned_by, created_at
FROM models
ORDER BY model;

-- name: price_add
-- Add versions of prices; none is ever changed.
INSERT INTO prices (model, effective_from, rates, tiers, multipliers, source)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::text[]);

-- name: price_current
-- The version of each model's price in force now.
SELECT DISTINCT ON (model) price_id, model, effective_from, rates, tiers, multipliers, source
FROM prices
WHERE effective_from <= now()
ORDER BY model, effective_from DESC, price_id DESC;

-- name: price_history
-- Every version of one model's price, newest first.
SELECT price_id, model, effective_from, rates, tiers, multipliers, source
FROM prices
WHERE model = $1
ORDER BY effective_from DESC, price_id DESC
LIMIT $2;

-- name: prices_changed
-- Tell every process that prices or models changed.
SELECT pg_notify('farebox_prices', '');

-- name: prices_by_ids
-- Versions of prices by their ids.
SELECT price_id, model, effective_from, rates, tiers, multipliers, source
FROM prices
WHERE price_id = ANY($1::bigint[]);

-- name: model_get
-- One model with its limits.
SELECT model, context_tokens_max, output_tokens_max, hidden_reasoning, owned_by, created_at
FROM models
WHERE model = $1;
