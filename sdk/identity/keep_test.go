// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	quiet = slog.New(slog.DiscardHandler)
	td    = spiffeid.RequireTrustDomainFromString("nsm.local")
)

func TestRenewAt(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		life   time.Duration
		jitter float64
		want   time.Duration
	}{
		{time.Hour, 0, 24 * time.Minute},
		{time.Hour, 0.5, 27 * time.Minute},
		{time.Hour, 0.999999, 30 * time.Minute},
		{time.Second, 0, 400 * time.Millisecond},
		{0, 0.9, 0},
		{-time.Hour, 0.9, 0},
	} {
		got := identity.RenewAt(now, now.Add(tt.life), tt.jitter).Sub(now).Round(time.Second / 100)
		if got != tt.want {
			t.Errorf("a life of %v with jitter %v is renewed after %v, want %v", tt.life, tt.jitter, got, tt.want)
		}
	}
}

// until returns an SVID that nobody checks but for its expiry.
func until(notAfter time.Time) *x509svid.SVID {
	return &x509svid.SVID{ID: identity.AuthorityID(td), Certificates: []*x509.Certificate{{NotAfter: notAfter}}}
}

// delivered is one call of Follow's deliver.
type delivered struct {
	at      time.Duration // since the start
	svid    *x509svid.SVID
	bundles int
}

// follow runs Follow for some time and returns what it delivered.
func follow(t *testing.T, life time.Duration, mint identity.Mint, bundles *identity.Bundles, script func()) (out []delivered) {
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- identity.Follow(ctx, until(start.Add(life)), mint, bundles, quiet, func(svid *x509svid.SVID, set *x509bundle.Set) error {
			out = append(out, delivered{time.Since(start), svid, set.Len()})
			return nil
		})
	}()
	script()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow() = %v", err)
	}
	return out
}

func TestFollowRenewsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mint := func(context.Context) (*x509svid.SVID, error) { return until(time.Now().Add(time.Hour)), nil }
		got := follow(t, time.Hour, mint, identity.NewBundles(), func() { time.Sleep(24 * time.Hour) })
		if len(got) < 48 || len(got) > 61 {
			t.Errorf("%d SVIDs in a day, want one each 24 to 30 minutes", len(got))
		}
		for i := range got[1:] {
			if gap := got[i+1].at - got[i].at; gap < 24*time.Minute || gap > 30*time.Minute {
				t.Errorf("renewed after %v", gap)
			}
		}
	})
}

func TestFollowBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mint := func(context.Context) (*x509svid.SVID, error) { return nil, errors.New("not yet") }
		bundles := identity.NewBundles()
		got := follow(t, time.Hour, mint, bundles, func() {
			time.Sleep(time.Minute)
			bundles.Replace(x509bundle.NewSet(x509bundle.New(td)))
			synctest.Wait()
			bundles.Replace(x509bundle.NewSet(x509bundle.New(td))) // the same
			time.Sleep(time.Minute)
		})
		if len(got) != 2 || got[1].at != time.Minute || got[1].bundles != 1 || got[1].svid != got[0].svid {
			t.Errorf("delivered %+v, want the same SVID with new bundles after a minute", got)
		}
	})
}

func TestFollowOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, calls := time.Now(), 0
		mint := func(context.Context) (*x509svid.SVID, error) {
			calls++
			if time.Since(start) < 10*time.Hour {
				return nil, nserr.PeerDown.Errorf("away")
			}
			return until(time.Now().Add(24 * time.Hour)), nil
		}
		got := follow(t, time.Hour, mint, identity.NewBundles(), func() { time.Sleep(11 * time.Hour) })
		if len(got) != 2 || got[1].at < 10*time.Hour || got[1].at > 10*time.Hour+15*time.Second {
			t.Errorf("delivered %+v, want a new SVID within 15 s after the outage", got)
		}
		if calls < 1000 || calls > 6000 { // each 7.5 to 15 s
			t.Errorf("%d attempts in 9.5 hours", calls)
		}
	})
}

// A mint that can only repeat itself is asked again, less and less apart, and
// nothing is delivered twice.
func TestFollowSameSVID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		same, calls := until(time.Now().Add(time.Hour)), 0
		mint := func(context.Context) (*x509svid.SVID, error) { calls++; return same, nil }
		start := time.Now()
		ctx, cancel := context.WithDeadline(t.Context(), start.Add(time.Hour))
		defer cancel()
		n := 0
		identity.Follow(ctx, same, mint, identity.NewBundles(), quiet, func(*x509svid.SVID, *x509bundle.Set) error { n++; return nil })
		if n != 1 || calls < 10 || calls > 200 {
			t.Errorf("delivered %d times with %d attempts", n, calls)
		}
	})
}

func TestFollowStopsWhenDeliverFails(t *testing.T) {
	full := errors.New("full")
	err := identity.Follow(t.Context(), until(time.Now().Add(time.Hour)), nil, identity.NewBundles(), quiet,
		func(*x509svid.SVID, *x509bundle.Set) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("Follow() = %v", err)
	}
}

func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var down atomic.Bool
		mint := func(context.Context) (*x509svid.SVID, error) {
			calls++
			switch {
			case calls == 2:
				return nil, nserr.TimedOut.Errorf("stopped")
			case calls < 4 || down.Load():
				return nil, nserr.PeerDown.Errorf("away")
			}
			return until(time.Now().Add(time.Hour)), nil
		}
		source, err := identity.Keep(t.Context(), mint, identity.NewBundles(x509bundle.New(td)), quiet)
		if err != nil || calls != 4 {
			t.Fatalf("Keep() = %v after %d attempts", err, calls)
		}
		first, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := source.GetX509BundleForTrustDomain(td); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		select {
		case <-source.Updated():
			t.Error("updated by its first SVID")
		default:
		}
		<-source.Updated()
		if second, err := source.GetX509SVID(); err != nil || second == first {
			t.Errorf("no new SVID: %v", err)
		}
		down.Store(true)
		time.Sleep(2 * time.Hour)
		if svid, err := source.GetX509SVID(); !errors.Is(err, nserr.NoIdentity) {
			t.Errorf("an expired SVID is handed out: %v, %v", svid, err)
		}
		for range 2 {
			if err := source.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := source.GetX509SVID(); !errors.Is(err, nserr.NoIdentity) {
			t.Errorf("closed source: %v", err)
		}
	})
}

// Whoever waits for an identity says so, once, with the cause and what helps.
func TestKeepSaysThatItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		log := slog.New(slog.NewTextHandler(&text, nil))
		calls := 0
		mint := func(context.Context) (*x509svid.SVID, error) {
			if calls++; calls < 9 {
				return nil, nserr.PeerDown.Errorf("connection refused by 10.0.0.1:5007").WithFix("start it")
			}
			return until(time.Now().Add(time.Hour)), nil
		}
		source, err := identity.Keep(t.Context(), mint, identity.NewBundles(), log)
		if err != nil {
			t.Fatal(err)
		}
		source.Close()
		if n := strings.Count(text.String(), "waiting for an identity"); n != 1 {
			t.Errorf("said %d times:\n%s", n, text.String())
		}
		for _, part := range []string{"level=WARN", "connection refused by 10.0.0.1:5007", "fix: start it"} {
			if !strings.Contains(text.String(), part) {
				t.Errorf("%q is not in %q", part, text.String())
			}
		}
	})
}

func TestKeepFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := func(context.Context) (*x509svid.SVID, error) { return nil, nserr.NotAllowed.Errorf("no") }
		if _, err := identity.Keep(t.Context(), refused, identity.NewBundles(), quiet); !errors.Is(err, nserr.NotAllowed) {
			t.Errorf("Keep() = %v", err)
		}
		away := func(context.Context) (*x509svid.SVID, error) { return nil, nserr.PeerDown.Errorf("away") }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := identity.Keep(ctx, away, identity.NewBundles(), quiet); !errors.Is(err, nserr.PeerDown) {
			t.Errorf("Keep() = %v", err)
		}
	})
}

// An outage is a warning once, an error once when the identity has expired, and its end
// is told.
func TestFollowSaysWhatItMeans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		mint := func(context.Context) (*x509svid.SVID, error) {
			if time.Since(start) < 10*time.Hour {
				return nil, nserr.PeerDown.Errorf("away")
			}
			return until(time.Now().Add(24 * time.Hour)), nil
		}
		var text strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Hour)
		defer cancel()
		_ = identity.Follow(ctx, until(start.Add(time.Hour)), mint, identity.NewBundles(), slog.New(slog.NewTextHandler(&text, nil)),
			func(*x509svid.SVID, *x509bundle.Set) error { return nil })
		var levels []string
		for line := range strings.Lines(text.String()) {
			levels = append(levels, strings.Fields(line)[1])
		}
		if got := strings.Join(levels, " "); got != "level=WARN level=ERROR level=INFO" {
			t.Errorf("said %s:\n%s", got, text.String())
		}
	})
}
