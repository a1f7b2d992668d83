// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
)

// retry spaces attempts to get an SVID from an authority that does not answer.
var retry = backoff.Policy{Min: 100 * time.Millisecond, Max: 15 * time.Second}

// checkEvery bounds how long a timer may run before the wall clock is looked at
// again. Timers stand still while a machine sleeps; certificates do not.
const checkEvery = time.Minute

// Mint makes an SVID. It may return the one it returned before, as long as that
// is valid, when it cannot make a new one.
type Mint func(ctx context.Context) (*x509svid.SVID, error)

// RenewAt returns when to replace an SVID that one got now: at 40 to 50 % of
// the life it has left. Here jitter, in [0, 1), keeps SVIDs that were issued
// together from being renewed together.
func RenewAt(now, notAfter time.Time, jitter float64) time.Time {
	life := notAfter.Sub(now)
	return now.Add(max(0, life*2/5+time.Duration(jitter*float64(life/10))))
}

// Follow calls deliver with svid and the bundles at once, and again whenever
// either changes: it replaces the SVID in time by what mint returns. A failing
// mint is tried again with back-off, without end. Follow returns when ctx ends
// or deliver fails, with that error.
func Follow(ctx context.Context, svid *x509svid.SVID, mint Mint, bundles *Bundles, log *slog.Logger,
	deliver func(*x509svid.SVID, *x509bundle.Set) error,
) error {
	due := RenewAt(time.Now(), expiry(svid), rand.Float64())
	said := slog.LevelDebug // of an outage
	for failures := 0; ; {
		set, changed := bundles.Current()
		if err := deliver(svid, set); err != nil {
			return err
		}
		for current := svid; current == svid; {
			if again, err := waitUntil(ctx, due, changed); err != nil {
				return err
			} else if again {
				break // new bundles
			}
			next, err := mint(ctx)
			now := time.Now()
			if err != nil {
				level := slog.LevelWarn
				if !now.Before(expiry(svid)) { // nobody lets it in any more
					level = slog.LevelError
				}
				if level <= said {
					level = slog.LevelDebug
				}
				said = max(said, level)
				log.Log(ctx, level, "cannot renew the identity", "spiffe_id", svid.ID, "expires", expiry(svid), "error", err)
				due = now.Add(retry.Delay(failures))
				failures++
				continue
			}
			if said > slog.LevelDebug {
				log.Info("identity renewed", "spiffe_id", next.ID, "expires", expiry(next))
			}
			failures, said = 0, slog.LevelDebug
			svid, due = next, RenewAt(now, expiry(next), rand.Float64())
			if svid == current { // mint made no new one
				due = maxTime(due, now.Add(retry.Min))
			}
		}
	}
}

// waitUntil waits for a time by the wall clock, or for new bundles (true).
func waitUntil(ctx context.Context, due time.Time, changed <-chan struct{}) (bool, error) {
	due = due.Round(0) // without the monotonic clock, which stops in sleep
	for {
		left := time.Until(due)
		if left <= 0 {
			return false, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-changed:
			return true, nil
		case <-time.After(min(left, checkEvery)):
		}
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func expiry(svid *x509svid.SVID) time.Time { return svid.Certificates[0].NotAfter }

// Keep returns a Source for what mint makes. It blocks until there is an SVID:
// while the authority cannot be reached it tries again until ctx ends, which it
// says once in the log; any other failure is final. ctx is for this wait alone.
func Keep(ctx context.Context, mint Mint, bundles *Bundles, log *slog.Logger) (Source, error) {
	var svid *x509svid.SVID
	for attempt := 0; ; attempt++ {
		var err error
		if svid, err = mint(ctx); err == nil {
			break
		}
		if code := nserr.From(err).Reason.GRPC; code != codes.Unavailable && code != codes.DeadlineExceeded {
			return nil, err
		}
		if attempt == 0 {
			log.Warn("waiting for an identity, the authority cannot be reached", "error", err)
		}
		if retry.Wait(ctx, attempt) != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &kept{svid: svid, bundles: bundles, cancel: cancel, done: make(chan struct{}), updated: make(chan struct{}, 1)}
	go func() {
		defer close(k.done)
		first := true
		_ = Follow(ctx, svid, mint, bundles, log, func(svid *x509svid.SVID, _ *x509bundle.Set) error {
			k.put(svid, !first)
			first = false
			return nil
		}) // ends with ctx alone
	}()
	return k, nil
}

// kept is the Source of Keep.
type kept struct {
	bundles *Bundles
	cancel  context.CancelFunc
	done    chan struct{} // closed when the renewing goroutine has ended
	updated chan struct{} // capacity 1

	mu   sync.RWMutex
	svid *x509svid.SVID // nil once closed
}

func (k *kept) put(svid *x509svid.SVID, tell bool) {
	k.mu.Lock()
	k.svid = svid
	k.mu.Unlock()
	if tell {
		select {
		case k.updated <- struct{}{}:
		default:
		}
	}
}

func (k *kept) GetX509SVID() (*x509svid.SVID, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.svid == nil {
		return nil, nserr.NoIdentity.Errorf("%w", errClosed)
	}
	return Unexpired(k.svid)
}

func (k *kept) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return k.bundles.GetX509BundleForTrustDomain(td)
}

func (k *kept) Updated() <-chan struct{} { return k.updated }

func (k *kept) Close() error {
	k.cancel()
	<-k.done
	k.mu.Lock()
	k.svid = nil
	k.mu.Unlock()
	return nil
}

var errClosed = errors.New("identity source is closed")

// Unexpired turns an SVID that nobody would accept into an error that says so.
func Unexpired(svid *x509svid.SVID) (*x509svid.SVID, error) {
	if until := expiry(svid); !time.Now().Before(until) {
		return nil, nserr.NoIdentity.Errorf("the SVID of %s has expired at %s and could not be renewed", svid.ID, until.Format(time.RFC3339)).
			WithFix("see whether the authority of the domain runs and can be reached from this node; after more than a day, join again")
	}
	return svid, nil
}
