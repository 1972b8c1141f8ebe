// The counter of Oyez's conformance kit, as a service without a line of Oyez.
//
// It keeps wire 1.0 (docs/wire/1.0.md): position, inbox, effects and outbox in one transaction of
// its own store, here SQLite. COUNTER_BUG plants one of ten mistakes, for the test of the kit.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const handler = "count"

// The claim of the outbox's relay is one as of a partition.
const outbox = "outbox"

func bug(name string) bool { return os.Getenv("COUNTER_BUG") == name }

type Tick struct {
	Name   *string `json:"name"`
	Number *int64  `json:"number"`
}

type Service struct {
	db         *sql.DB
	broker     Broker
	in, out    string
	source     string
	partitions uint32
	owner      string
	consumer   bool // level consumer: tell each line on standard output, announce nothing
	woken      chan struct{}
	output     sync.Mutex
}

func main() {
	partitions, _ := strconv.Atoi(os.Getenv("CONFORMANCE_PARTITIONS"))
	broker, err := Connect(os.Getenv("CONFORMANCE_BROKER"))
	check(err)
	s := &Service{
		broker:     broker,
		in:         os.Getenv("CONFORMANCE_IN"),
		out:        os.Getenv("CONFORMANCE_OUT"),
		source:     os.Getenv("CONFORMANCE_SOURCE"),
		partitions: uint32(partitions),
		owner:      "replica-" + os.Getenv("CONFORMANCE_REPLICA"),
		consumer:   os.Getenv("CONFORMANCE_LEVEL") == "consumer",
		woken:      make(chan struct{}, 1),
	}
	if os.Getenv("CONFORMANCE_LEVEL") == "producer" {
		s.produce()
		return
	}
	s.db, err = openStore(os.Getenv("CONFORMANCE_DATA"))
	check(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if !s.consumer {
		http.HandleFunc("GET /rows", s.show)
		go func() { check(http.ListenAndServe(os.Getenv("CONFORMANCE_HTTP"), nil)) }()
	}
	var works sync.WaitGroup
	for partition := range partitions {
		works.Go(func() { s.own(ctx, s.in, partition, s.read) })
	}
	works.Go(func() { s.own(ctx, outbox, 0, s.relay) })
	works.Wait()
}

// own works on a partition as long as this replica has it.
func (s *Service) own(ctx context.Context, stream string, partition int, work func(context.Context, *Claim) error) {
	for ctx.Err() == nil {
		claim, err := take(s.db, stream, partition, s.owner)
		if claim == nil {
			if err != nil {
				log.Print(err)
			}
			pause(ctx, 200*time.Millisecond)
			continue
		}
		mine, end := context.WithCancel(ctx)
		go func() {
			for mine.Err() == nil && claim.keep(s.db, time.Now().Add(lease)) {
				pause(mine, lease/4)
			}
			end()
		}()
		if err := work(mine, claim); err != nil && mine.Err() == nil {
			log.Printf("%s %d: %v", stream, partition, err)
			pause(mine, 200*time.Millisecond)
		}
		end()
		if ctx.Err() != nil {
			claim.keep(s.db, time.UnixMilli(0)) // to another replica, at once
		}
	}
}

func (s *Service) read(ctx context.Context, claim *Claim) error {
	go s.retry(ctx, claim)
	return s.broker.Read(ctx, claim.Stream, claim.Partition, claim.Position, func(m Message) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return s.take(claim, m)
	})
}

// take handles a message: the inbox rule, in one transaction.
func (s *Service) take(claim *Claim, m Message) error {
	event, err := Open(m)
	if err != nil {
		return s.refuse(claim, m, event, err)
	}
	a := event.Attributes
	recipient, addressed := a["recipient"]
	expires, _ := time.Parse(time.RFC3339Nano, a["expires"])
	late := a["expires"] != "" && expires.Before(time.Now())
	if a["type"] != "conformance.tick" || addressed && recipient != "counter" || late { // W19, W20
		return within(s.db, func(tx *sql.Tx) error { return claim.move(tx, m.Position) })
	}
	if version := event.Version(); version > 1 && !bug("newer-as-old") {
		return s.refuse(claim, m, event, fmt.Errorf("W18: version %d is newer than 1", version))
	}
	tick, err := decode(event.Data)
	if err != nil {
		return s.refuse(claim, m, event, err)
	}
	source := a["source"]
	if bug("id-only") {
		source = ""
	}
	if bug("ack-before-commit") {
		check(within(s.db, func(tx *sql.Tx) error { return claim.move(tx, m.Position) }))
	}
	if bug("inbox-apart") {
		fresh := false
		check(within(s.db, func(tx *sql.Tx) error { fresh = remember(tx, source, a["id"]) == nil; return nil }))
		if !fresh {
			return within(s.db, func(tx *sql.Tx) error { return claim.move(tx, m.Position) })
		}
	}
	hold(tick)

	defer s.wake()
	return within(s.db, func(tx *sql.Tx) error {
		// The position moves with the effects, and only under the newest epoch (W21, W22).
		if err := claim.move(tx, m.Position); err != nil {
			return err
		}
		// What the inbox knows has had its effects (W23, W24).
		if !bug("inbox-apart") {
			if err := remember(tx, source, a["id"]); errors.Is(err, errKnown) {
				return nil
			} else if err != nil {
				return err
			}
		}
		// An event waits behind an earlier one of its key that failed (W28).
		var waiting int
		if err := tx.QueryRow(`select count(*) from parked where stream = ? and partition = ? and key = ?`,
			claim.Stream, claim.Partition, event.Key()).Scan(&waiting); err != nil {
			return err
		}
		if waiting == 0 || bug("no-park") {
			err := s.count(tx, event, tick)
			if err == nil || !errors.Is(err, errFailed) {
				return err
			}
		}
		attributes, _ := json.Marshal(a)
		_, err := tx.Exec(`insert into parked (stream, partition, key, attributes, data) values (?, ?, ?, ?, ?)`,
			claim.Stream, claim.Partition, event.Key(), attributes, event.Data)
		return err
	})
}

var errKnown = errors.New("the inbox has it")

func remember(tx *sql.Tx, source, id string) error {
	done, err := tx.Exec(`insert into inbox (source, id, handler) values (?, ?, ?) on conflict do nothing`,
		source, id, handler)
	if err != nil {
		return err
	}
	if count, _ := done.RowsAffected(); count == 0 {
		return errKnown
	}
	return nil
}

var errFailed = errors.New("poison")

// count is the handler: a row, and an announcement in the outbox (W25).
func (s *Service) count(tx *sql.Tx, event Event, tick Tick) error {
	if *tick.Name == "poison" && *tick.Number == 1 && exists(os.Getenv("CONFORMANCE_FAIL")) {
		return errFailed
	}
	if s.consumer {
		s.tell(map[string]any{"row": tick})
	}
	if _, err := tx.Exec(`insert into counted (name, number) values (?, ?)`, tick.Name, tick.Number); err != nil {
		return err
	}
	if s.consumer {
		return nil
	}
	partition, headers, data := s.tock(tick, event)
	text, _ := json.Marshal(headers)
	_, err := tx.Exec(`insert into outbox (stream, partition, key, headers, data) values (?, ?, ?, ?, ?)`,
		s.out, partition, *tick.Name, text, data)
	return err
}

// tock is the announcement, with the id that it keeps however often it is sent (W12).
func (s *Service) tock(tick Tick, cause Event) (uint32, map[string]string, []byte) {
	data, _ := json.Marshal(tick)
	headers := map[string]string{
		"specversion": "1.0", "id": rand.Text(), "source": s.source, "type": "conformance.tock",
		"subject": *tick.Name, "time": time.Now().UTC().Format(time.RFC3339Nano),
		"datacontenttype": "application/json",
	}
	if a := cause.Attributes; a != nil { // W10
		headers["causationid"], headers["correlationid"] = a["id"], a["id"]
		if correlation, found := a["correlationid"]; found {
			headers["correlationid"] = correlation
		}
	}
	partition := Partition(*tick.Name, s.partitions)
	if bug("crc32") {
		partition = crc32.ChecksumIEEE([]byte(*tick.Name)) % s.partitions
	}
	return partition, headers, data
}

// refuse keeps a bad event with its bytes, and goes on (W16, W17).
func (s *Service) refuse(claim *Claim, m Message, event Event, reason error) error {
	data, id, source := m.Data, event.Attributes["id"], event.Attributes["source"]
	if bug("dead-drops-bytes") {
		data = []byte("{}")
	}
	if s.consumer {
		s.tell(letter(id, source, reason.Error(), encode(data)))
	}
	return within(s.db, func(tx *sql.Tx) error {
		if err := claim.move(tx, m.Position); err != nil {
			return err
		}
		_, err := tx.Exec(`insert into dead (id, source, reason, data) values (?, ?, ?, ?)`,
			id, source, reason.Error(), encode(data))
		return err
	})
}

// encode tells no data from empty data.
func encode(data []byte) any {
	if data == nil {
		return nil
	}
	return base64.StdEncoding.EncodeToString(data)
}

// retry tries the first parked event of each key again.
func (s *Service) retry(ctx context.Context, claim *Claim) {
	for ctx.Err() == nil {
		more := false
		err := within(s.db, func(tx *sql.Tx) error {
			rows, err := tx.Query(`select min(seq), attributes, data from parked
				where stream = ? and partition = ? group by key`, claim.Stream, claim.Partition)
			if err != nil {
				return err
			}
			type parked struct {
				seq   int64
				event Event
			}
			var found []parked
			for rows.Next() {
				var each parked
				var attributes []byte
				if err := rows.Scan(&each.seq, &attributes, &each.event.Data); err != nil {
					return err
				}
				json.Unmarshal(attributes, &each.event.Attributes)
				found = append(found, each)
			}
			if len(found) == 0 {
				return nil
			}
			var position int64 // as it is: this commit too is for the newest epoch alone
			if err := tx.QueryRow(`select position from cursor where stream = ? and partition = ?`,
				claim.Stream, claim.Partition).Scan(&position); err != nil {
				return err
			}
			if err := claim.move(tx, position); err != nil {
				return err
			}
			for _, each := range found {
				tick, err := decode(each.event.Data)
				if err != nil {
					return err
				}
				if err := s.count(tx, each.event, tick); errors.Is(err, errFailed) {
					continue
				} else if err != nil {
					return err
				}
				if _, err := tx.Exec(`delete from parked where seq = ?`, each.seq); err != nil {
					return err
				}
				more = true
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			log.Print("parked: ", err)
		}
		if more {
			s.wake()
		} else {
			pause(ctx, 200*time.Millisecond)
		}
	}
}

// relay publishes the outbox in its order, and deletes what the broker has confirmed (W26, W27).
func (s *Service) relay(ctx context.Context, claim *Claim) error {
	order := "seq"
	if bug("unordered") {
		order = "random()"
	}
	for ctx.Err() == nil {
		rows, err := s.db.Query(`select seq, stream, partition, key, headers, data from outbox order by ` + order + ` limit 100`)
		if err != nil {
			return err
		}
		type sent struct {
			seq         int64
			stream, key string
			partition   uint32
			headers     map[string]string
			data        []byte
		}
		var batch []sent
		for rows.Next() {
			var each sent
			var headers []byte
			if err := rows.Scan(&each.seq, &each.stream, &each.partition, &each.key, &headers, &each.data); err != nil {
				return err
			}
			json.Unmarshal(headers, &each.headers)
			batch = append(batch, each)
		}
		forget := func() error {
			return within(s.db, func(tx *sql.Tx) error {
				for _, each := range batch {
					if _, err := tx.Exec(`delete from outbox where seq = ?`, each.seq); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if bug("delete-before-confirm") {
			check(forget())
		}
		for _, each := range batch {
			for {
				limited, end := context.WithTimeout(ctx, 5*time.Second)
				err := s.broker.Publish(limited, each.stream, each.partition, each.key, each.headers, each.data)
				end()
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				log.Print("publish: ", err)
				pause(ctx, 200*time.Millisecond)
			}
		}
		if len(batch) > 0 {
			if bug("delete-before-confirm") {
				continue
			}
			if err := forget(); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.woken:
		case <-time.After(time.Second):
		}
	}
	return nil
}

// produce is level producer: a tock for each line of standard input, confirmed before the next.
func (s *Service) produce() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		tick, err := decode(lines.Bytes())
		check(err)
		partition, headers, data := s.tock(tick, Event{})
		for {
			limited, end := context.WithTimeout(context.Background(), 5*time.Second)
			err := s.broker.Publish(limited, s.out, partition, *tick.Name, headers, data)
			end()
			if err == nil {
				break
			}
			log.Print("publish: ", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
	check(lines.Err())
}

func (s *Service) show(w http.ResponseWriter, _ *http.Request) {
	lines := json.NewEncoder(w)
	rows, err := s.db.Query(`select name, number from counted order by seq`)
	check(err)
	for rows.Next() {
		var tick Tick
		check(rows.Scan(&tick.Name, &tick.Number))
		lines.Encode(map[string]any{"row": tick})
	}
	rows, err = s.db.Query(`select id, source, reason, data from dead order by seq`)
	check(err)
	for rows.Next() {
		var id, source, reason string
		var data *string
		check(rows.Scan(&id, &source, &reason, &data))
		lines.Encode(letter(id, source, reason, data))
	}
	rows, err = s.db.Query(`select partition, position from cursor where stream = ?`, s.in)
	check(err)
	for rows.Next() {
		var partition, position int64
		check(rows.Scan(&partition, &position))
		lines.Encode(map[string]any{"position": map[string]int64{"partition": partition, "position": position}})
	}
}

func letter(id, source, reason string, data any) any {
	return map[string]any{"dead": map[string]any{"id": id, "source": source, "reason": reason, "data": data}}
}

func (s *Service) tell(line any) {
	s.output.Lock()
	defer s.output.Unlock()
	check(json.NewEncoder(os.Stdout).Encode(line))
}

func decode(data []byte) (Tick, error) {
	var tick Tick
	if err := json.Unmarshal(data, &tick); err != nil {
		return tick, fmt.Errorf("W8: %w", err)
	}
	if tick.Name == nil || tick.Number == nil {
		return tick, errors.New("W8: name or number is missing")
	}
	return tick, nil
}

func hold(tick Tick) {
	file := os.Getenv("CONFORMANCE_HOLD")
	for *tick.Name == "slow" && exists(file) {
		check(os.WriteFile(file+".started", nil, 0o600))
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *Service) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
