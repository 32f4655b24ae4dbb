-- What a reply does: it finds its lead, a STOP word opts the lead out, and sequences that exit on a reply end for it.

-- Which words end everything. -----------------------------------------------------------------------------------

-- A message as it is compared: without regard to case, width, punctuation, symbols, emojis and spaces around and between
-- its words. The first lower() makes the letters of ASCII small whatever the database's locale thinks of an I.
CREATE FUNCTION dripline_said(message text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    $$SELECT btrim(regexp_replace(lower(lower(normalize(message, NFKC) COLLATE "C") COLLATE "default"),
        '[\u0001-\u0020!-/:-@\[-`{-~\u007F-\u00BF\u060C\u061B\u061F\u066A-\u066D\u06D4\u0964\u0965\u2000-\u2BFF\u3000-\u303F\u30FB\uFE00-\uFE0F\U0001F000-\U0001FAFF]+',
        ' ', 'g'))$$;

-- The words, and an operator's own: INSERT INTO stop_words (word) VALUES ('no gracias'). A reply that is one of them, as a
-- whole, opts its lead out. Of words in letters whose case some locales do not know there are two forms.
CREATE TABLE stop_words (
    word     text PRIMARY KEY,
    language text NOT NULL DEFAULT 'own',
    said     text NOT NULL GENERATED ALWAYS AS (dripline_said(word)) STORED CHECK (said <> '')
);
CREATE INDEX stop_words_said ON stop_words (said);

INSERT INTO stop_words (language, word)
SELECT DISTINCT ON (word) language, word
FROM (VALUES
    ('English', '{stop,stop all,stopall,please stop,stop please,unsubscribe,unsubscribe me,unsub,opt out,optout,cancel,end,quit,revoke,remove me}'),
    ('Malay', '{berhenti,hentikan,henti,batal,keluar,tamat,berhenti langgan,nyahlanggan}'),
    ('Indonesian', '{berhenti,hentikan,batal,setop,unreg,berhenti berlangganan}'),
    ('Spanish', '{parar,para,alto,detener,basta,baja,darme de baja,darse de baja,dar de baja,cancelar,salir}'),
    ('Portuguese', '{parar,pare,sair,cancelar,descadastrar,remover,"não quero mais"}'),
    ('French', '{stop,arrêt,ARRÊT,arret,arrêter,ARRÊTER,arreter,arrêtez,arretez,désabonner,DÉSABONNER,desabonner,désinscrire,DÉSINSCRIRE,desinscrire,annuler}'),
    ('German', '{stop,stopp,halt,abmelden,abbestellen,austragen,kündigen,KÜNDIGEN,kuendigen,aufhören,AUFHÖREN,aufhoeren,ende}'),
    ('Italian', '{stop,basta,ferma,fermare,annulla,cancellami,disiscrivimi,disiscriviti,disdici}'),
    ('Dutch', '{stop,stoppen,afmelden,uitschrijven,opzeggen,einde}'),
    ('Polish', '{stop,koniec,wypisz,wypisz mnie,rezygnuję,REZYGNUJĘ,rezygnuje,anuluj}'),
    ('Turkish', '{dur,durdur,iptal,İptal,İPTAL,çık,ÇIK,cik,ret,abonelikten çık}'),
    ('Russian', '{стоп,СТОП,Стоп,отписаться,ОТПИСАТЬСЯ,Отписаться,отписка,Отписка,отмена,ОТМЕНА,Отмена,хватит,Хватит,прекратите,Прекратите}'),
    ('Ukrainian', '{стоп,відписатися,ВІДПИСАТИСЯ,Відписатися,скасувати,Скасувати,досить,Досить}'),
    ('Filipino', '{itigil,tigil,hinto,ihinto,tama na}'),
    ('Hindi', '{बंद,बंद करो,बंद करें,बन्द करो,रोको,रोकें,रुको,रद्द,रद्द करें,band karo,bandh karo}'),
    ('Tamil', '{நிறுத்து,நிறுத்துங்கள்,நிறுத்தவும்}'),
    ('Bengali', '{বন্ধ,বন্ধ করুন,বন্ধ করো,থামুন}'),
    ('Urdu', '{بند کرو,بند کریں,روکو,منسوخ}'),
    ('Arabic', '{توقف,توقفوا,قف,إيقاف,ايقاف,أوقف,اوقف,إلغاء,الغاء,إلغاء الاشتراك,الغاء الاشتراك}'),
    ('Hebrew', '{הסר,הסירו,הסירו אותי,עצור,די}'),
    ('Chinese', '{停,停止,退订,退訂,取消,取消订阅,取消訂閱,拒收,td}'),
    ('Japanese', '{停止,配信停止,中止,解除,ストップ,やめて}'),
    ('Korean', '{중지,정지,그만,수신거부,수신 거부,해지,취소}'),
    ('Thai', '{หยุด,หยุดส่ง,ยกเลิก,เลิกรับ}'),
    ('Vietnamese', '{dừng,DỪNG,Dừng,dừng lại,Dừng lại,ngừng,NGỪNG,Ngừng,hủy,HỦY,Hủy,huỷ,HUỶ,Huỷ,từ chối,TỪ CHỐI,Từ chối}')
) w(language, words) CROSS JOIN LATERAL unnest(w.words::text[]) WITH ORDINALITY u(word, place)
ORDER BY word, language, place;

-- Opting out. ---------------------------------------------------------------------------------------------------

-- These leads want no messages, each since then; a lead whose row somebody holds is marked in a later pass, and nothing
-- leaves to it until then.
CREATE FUNCTION dripline_opt_out(leads bigint[], at_us bigint[]) RETURNS void LANGUAGE sql AS $$
    WITH told AS (SELECT lead_id, min(at) AS at FROM unnest($1, $2) s(lead_id, at) GROUP BY 1),
    free AS MATERIALIZED (
        SELECT l.id, t.at FROM leads l JOIN told t ON t.lead_id = l.id ORDER BY l.id FOR NO KEY UPDATE OF l SKIP LOCKED
    ),
    later AS (
        INSERT INTO opt_outs (lead_id, at) SELECT lead_id, dripline_at(at) FROM told
        WHERE lead_id NOT IN (SELECT id FROM free)
        ON CONFLICT DO NOTHING
    )
    UPDATE leads l SET opted_out_at = dripline_at(f.at) FROM free f WHERE l.id = f.id AND l.opted_out_at IS NULL
$$;

-- Leaving a sequence. -------------------------------------------------------------------------------------------

ALTER TABLE sequences ADD exit_on_reply boolean NOT NULL DEFAULT false;

-- Enrolments that a reply has ended and the enroller has not marked yet: nothing of them leaves any more.
CREATE TABLE exits (
    lead_id      bigint NOT NULL,
    enrolment_id bigint NOT NULL,
    PRIMARY KEY (lead_id, enrolment_id)
);

-- Replies of phones that no lead has.
CREATE INDEX replies_unmatched ON replies (id) WHERE lead_id IS NULL;

CREATE FUNCTION dripline_find_lead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.lead_id := (SELECT id FROM leads WHERE phone = regexp_replace(NEW.phone, '[^0-9]', '', 'g'));
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_find_lead BEFORE INSERT ON replies
    FOR EACH ROW WHEN (NEW.lead_id IS NULL) EXECUTE FUNCTION dripline_find_lead();

-- A reply ends what there was when it was received: one that is told late does not end what the lead has entered since. One
-- that is told at once ends everything there is, whatever the clocks of database and engine say. OFFSET 0 keeps the
-- planner on a look-up a lead. The queue's rows wake the coordinator.
CREATE FUNCTION dripline_replied() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    stopping bigint[] := ARRAY(
        SELECT DISTINCT r.lead_id FROM new_rows r JOIN stop_words w ON w.said = dripline_said(r.text)
        WHERE r.lead_id IS NOT NULL AND length(r.text) <= 200 ORDER BY r.lead_id);
BEGIN
    IF stopping <> '{}' THEN
        PERFORM dripline_opt_out(stopping, array_fill(dripline_us(dripline_now()), ARRAY[cardinality(stopping)]));
    END IF;
    WITH ended AS (
        INSERT INTO exits (lead_id, enrolment_id)
        SELECT DISTINCT r.lead_id, c.id
        FROM new_rows r CROSS JOIN LATERAL (
            SELECT id, sequence_id, enrolled_at FROM sequence_contacts
            WHERE lead_id = r.lead_id AND status IN ('active', 'in_doubt') OFFSET 0) c
        JOIN sequences s ON s.id = c.sequence_id AND s.exit_on_reply
        WHERE r.received_at >= dripline_now() OR c.enrolled_at <= r.received_at
        ON CONFLICT DO NOTHING
        RETURNING lead_id
    )
    INSERT INTO lead_changes (leads)
    SELECT array_agg(lead_id ORDER BY lead_id) FROM (
        SELECT lead_id, (row_number() OVER (ORDER BY lead_id) - 1) / 200 AS part
        FROM (SELECT DISTINCT lead_id FROM ended) e) parts
    GROUP BY part ORDER BY part;
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_replied AFTER INSERT ON replies
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_replied();
