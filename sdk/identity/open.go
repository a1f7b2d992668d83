// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
)

// openTimeout bounds Open when its context has no deadline.
const openTimeout = 30 * time.Second

// Config says where to get an identity. The zero value is what most programs
// want.
type Config struct {
	// Address of the Workload API as a URL, unix:///path or tcp://ip:port.
	// Empty: SPIFFE_ENDPOINT_SOCKET, or DefaultSocket when that is unset.
	Address string

	Logger *slog.Logger // nil = slog.Default()
}

// Open returns this process's identity from the SPIFFE Workload API. It waits
// until there is one, as long as ctx allows (at most 30 s if it sets no
// deadline), and says once in the log that it waits. It fails with the reason
// nserr.NoIdentity.
func Open(ctx context.Context, c Config) (Source, error) {
	address := c.address()
	if err := workloadapi.ValidateAddress(address); err != nil {
		return nil, nserr.BadFlag.Errorf("address of the Workload API %q: %w", address, err)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, openTimeout)
		defer cancel()
	}
	log := c.Logger
	if log == nil {
		log = slog.Default()
	}
	trouble := &trouble{log: log.With("address", address)}
	start := time.Now()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(
		workloadapi.WithAddr(address),
		workloadapi.WithLogger(trouble),
		workloadapi.WithBackoffStrategy(retryStrategy{}),
		workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: retry.Min, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		})),
	))
	switch {
	case err != nil && trouble.silent(err):
		return nil, nserr.NoIdentity.Errorf("no identity from %s, which takes calls and has not answered within %s: %w", address, time.Since(start).Round(10*time.Millisecond), err).
			WithFix("see whether the process there runs and is not stopped, or set SPIFFE_ENDPOINT_SOCKET")
	case err != nil:
		return nil, nserr.NoIdentity.Errorf("no identity from %s: %w", address, trouble.because(err))
	}
	trouble.opened()
	return opened{source}, nil
}

func (c Config) address() string {
	if c.Address != "" {
		return c.Address
	}
	if env := os.Getenv(workloadapi.SocketEnv); env != "" {
		return env
	}
	return DefaultSocket
}

// opened is a workloadapi.X509Source that does not hand out what has expired.
type opened struct{ *workloadapi.X509Source }

func (o opened) GetX509SVID() (*x509svid.SVID, error) {
	svid, err := o.X509Source.GetX509SVID()
	if err != nil {
		return nil, nserr.NoIdentity.Errorf("%w", err)
	}
	return Unexpired(svid)
}

// trouble is the logger of the Workload API client: it keeps the last failure
// for the error of Open, and tells about the first of a row.
type trouble struct {
	log *slog.Logger

	mu   sync.Mutex
	last string // why there is no SVID, "" if nothing has failed
	open bool   // the first SVID is there: failures are about its renewal
}

// Errorf implements logger.Logger.
func (t *trouble) Errorf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if strings.Contains(message, "code = Canceled") {
		return // we are closing
	}
	t.mu.Lock()
	first, open := t.last == "", t.open
	t.last = message
	t.mu.Unlock()
	switch {
	case open:
		t.log.Warn("lost the Workload API, trying again", "error", message)
	case first:
		t.log.Info("waiting for an identity: "+nserr.NoIdentity.Fix, "error", message)
	}
}

func (t *trouble) Warnf(string, ...any)  {}
func (t *trouble) Infof(string, ...any)  {}
func (t *trouble) Debugf(string, ...any) {}

func (t *trouble) opened() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = true
}

// silent reports whether err is a deadline by which nothing has failed.
func (t *trouble) silent(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last == "" && errors.Is(err, context.DeadlineExceeded)
}

// because returns the failure that err, often just a deadline, is due to.
func (t *trouble) because(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == "" || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %s", context.DeadlineExceeded, t.last)
}

// retryStrategy gives the Workload API client our way of spacing retries.
type retryStrategy struct{}

func (retryStrategy) NewBackoff() workloadapi.Backoff { return &retryBackoff{retry: retry} }

type retryBackoff struct {
	retry   backoff.Policy
	attempt int
}

func (b *retryBackoff) Next() time.Duration { b.attempt++; return b.retry.Delay(b.attempt - 1) }
func (b *retryBackoff) Reset()              { b.attempt = 0 }
