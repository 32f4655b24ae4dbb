-- Who may act: leadership of the coordinator, epochs of coordinator and shards.

-- name: take_leadership
-- Nothing comes back while another holder's leadership lasts. One that lies further ahead than anybody renews was
-- written before the database's clock stepped back, and has ended.
INSERT INTO heartbeats AS h (name, holder, expires_at)
VALUES ('coordinator', $1, clock_timestamp() + $2::double precision * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
    WHERE h.holder = excluded.holder OR h.expires_at < clock_timestamp()
       OR h.expires_at > clock_timestamp() + 2 * $2::double precision * interval '1 second'
RETURNING holder;

-- name: current_leader
SELECT holder FROM heartbeats WHERE name = 'coordinator';

-- name: end_leadership
UPDATE heartbeats SET expires_at = '-infinity' WHERE name = 'coordinator' AND holder = $1;

-- name: raise_epoch
-- Waits for claims under way: they hold the row FOR SHARE. No two seats ever have one epoch: a lease of a device that
-- has changed shards must not pass for its new owner's.
INSERT INTO epochs AS e (name, epoch, holder, raised_at) VALUES ($1, nextval('lease_tokens'), $2, dripline_now())
ON CONFLICT (name) DO UPDATE SET epoch = nextval('lease_tokens'), holder = excluded.holder, raised_at = excluded.raised_at
RETURNING epoch;

-- name: beat
-- Somebody else's seat is taken over once that one's heartbeat has ended, or lies ahead as no heartbeat can.
INSERT INTO heartbeats AS h (name, holder, expires_at)
VALUES ($1, $2, clock_timestamp() + $3::double precision * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
    WHERE h.holder = excluded.holder OR h.expires_at < clock_timestamp()
       OR h.expires_at > clock_timestamp() + 2 * $3::double precision * interval '1 second';

-- name: read_epoch
-- The epoch in force, and the database's clock (wall) for the live clock's renewal.
SELECT (SELECT epoch FROM epochs WHERE name = $1) AS epoch, dripline_us(clock_timestamp()) AS wall_us;
