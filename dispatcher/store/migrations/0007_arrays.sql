-- Array parameters in one piece: a client may send a domain's value as bytes, where an array goes value by value.

CREATE DOMAIN dripline_int8s AS bigint[];
CREATE DOMAIN dripline_int4s AS integer[];
CREATE DOMAIN dripline_bools AS boolean[];
CREATE DOMAIN dripline_uuids AS uuid[];
CREATE DOMAIN dripline_texts AS text[];
