// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/internal/journal"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/token"
)

// Leases is a file of who has which addresses. With it nobody who comes to an
// endpoint that has just restarted gets what a wire that lives has, however long its
// client takes to refresh it:
//
//	leases, err := endpoint.OpenLeases("/var/lib/database/leases", pool, nil)
//	…
//	defer leases.Close()
//	… endpoint.Chain(endpoint.Interface(nil), leases.Remember, endpoint.Addresses(pool, endpoint.Strict))
//
// A connection has the same id after a restart, so its addresses wait for it until
// its tokens end. The file needs no backup and is worth no error: one that is damaged,
// or of another version, is set aside with a warning, and what cannot be written is
// written with the next refresh.
type Leases struct {
	log  *slog.Logger
	path string
	pool *ipam.Pool

	mu      sync.Mutex
	journal *journal.Journal  // guarded by mu
	records map[string]record // by connection id; what the file holds; guarded by mu
	failing bool              // the last write has failed; guarded by mu
}

// record is a lease in the file, in JSON.
type record struct {
	ID      string         `json:"id"`
	Src     []netip.Prefix `json:"src"`
	Dst     []netip.Prefix `json:"dst"`
	Written time.Time      `json:"written"`
	Expires time.Time      `json:"expires"`
}

// OpenLeases opens or makes the file and has pool keep the addresses in it for those
// who have them. One endpoint at a time may have the file.
func OpenLeases(path string, pool *ipam.Pool, log *slog.Logger) (*Leases, error) {
	if log == nil {
		log = slog.Default()
	}
	l := &Leases{log: log, path: path, pool: pool, records: make(map[string]record)}
	dir := filepath.Dir(path)
	err := os.MkdirAll(filepath.Dir(dir), 0o755)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nserr.StateDir.Errorf("directory of the lease file: %w", err)
	}
	l.journal, err = journal.Open(journal.Config{
		Path: path, Kind: "NSMIPL", Version: 1, Noun: "lease file", Disposable: true, Logger: log,
		Lost: "who has which addresses: a new client may get those of a wire that its client has yet to refresh",
	}, l.replay)
	if err != nil {
		return nil, err
	}
	l.restore(time.Now())
	return l, nil
}

func (l *Leases) replay(op journal.Operation, payload []byte) error {
	if op == journal.Delete {
		delete(l.records, string(payload))
		return nil
	}
	var r record
	if err := json.Unmarshal(payload, &r); err != nil {
		return err
	}
	l.records[r.ID] = r
	return nil
}

// restore hands what has not expired to the pool. Should two have the same address,
// since the end of the one lease could not be written, the later one has it.
func (l *Leases) restore(now time.Time) {
	latest := make([]record, 0, len(l.records))
	for _, r := range l.records {
		latest = append(latest, r)
	}
	slices.SortFunc(latest, func(a, b record) int {
		return cmp.Or(b.Written.Compare(a.Written), cmp.Compare(a.ID, b.ID))
	})
	expired := 0
	for _, r := range latest {
		// Not longer than it was to be kept when it was written: the clock may have
		// been set back.
		left := min(r.Expires.Sub(now), r.Expires.Sub(r.Written))
		if left <= 0 || !l.pool.Restore(r.ID, ipam.Lease{Src: r.Src, Dst: r.Dst}, now.Add(left)) {
			delete(l.records, r.ID)
			expired++
		}
	}
	if expired > 0 || l.journal.Due() || l.journal.Empty() && len(latest) > 0 {
		l.compact()
	}
	if len(latest) > 0 {
		l.log.Info("leases restored", "file", l.path, "count", len(l.records), "expired", expired)
	}
}

// Remember is the middleware that keeps the file. It stands before Addresses in the
// chain.
func (l *Leases) Remember(next Handler) Handler {
	return Funcs{
		OnRequest: func(ctx context.Context, r *Request) error {
			if err := next.Request(ctx, r); err != nil {
				return err
			}
			l.note(r.Connection)
			return nil
		},
		OnClose: func(ctx context.Context, c *networkservice.Connection) {
			if c.GetState() == networkservice.State_UP { // first: then somebody else may have them
				l.forget(c.GetId())
			}
			next.Close(ctx, c)
		},
	}
}

// note writes down what the connection has of the pool.
func (l *Leases) note(c *networkservice.Connection) {
	ours := func(texts []string) (out []netip.Prefix) {
		for _, text := range texts {
			if p, err := hop.ParsePrefix(text); err == nil && l.pool.Contains(p.Addr()) {
				out = append(out, p)
			}
		}
		return out
	}
	ip := c.GetContext().GetIpContext()
	r := record{ID: c.GetId(), Src: ours(ip.GetSrcIpAddrs()), Dst: ours(ip.GetDstIpAddrs()), Written: time.Now()}
	if r.Src == nil || r.Dst == nil {
		return
	}
	r.Expires = r.Written.Add(token.DefaultLifetime)
	if prev, ok := hop.PathOf(c).Prev(); ok && !prev.Expires.IsZero() {
		r.Expires = prev.Expires
	}
	payload, err := json.Marshal(r)
	if err != nil {
		l.log.Error("lease not written", "connection", r.ID, "error", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[r.ID] = r
	l.wroteLocked(l.journal.Append(journal.Put, payload))
}

func (l *Leases) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.records[id]; known {
		delete(l.records, id)
		l.wroteLocked(l.journal.Append(journal.Delete, []byte(id)))
	}
}

// wroteLocked tells of a failure once, and compacts the file when it is due.
func (l *Leases) wroteLocked(err error) {
	if err != nil && !l.failing {
		l.log.Warn("lease not written, wires go on without", "file", l.path, "error", err)
	}
	l.failing = err != nil
	if l.journal.Due() {
		l.compact()
	}
}

// compact writes the file anew without history. Caller holds mu, or is alone. On an
// error the file stays as it is.
func (l *Leases) compact() {
	err := l.journal.Rewrite(func(yield func([]byte, error) bool) {
		for _, r := range l.records {
			if payload, err := json.Marshal(r); !yield(payload, err) {
				return
			}
		}
	})
	if err != nil {
		l.log.Warn("lease file stays uncompacted", "file", l.path, "bytes", l.journal.Size(), "error", err)
	}
}

// Close closes the file. Call it when the endpoint has stopped.
func (l *Leases) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.journal.Close()
}
