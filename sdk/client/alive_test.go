// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/openvwire/nsm/sdk/nserr"
)

// watched is a connection to a manager that counts how often it is asked whether it is
// alive, and can freeze it.
type watched struct {
	grpc.ClientConnInterface
	checks atomic.Int32
	frozen atomic.Bool
}

func (w *watched) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if method == healthpb.Health_Check_FullMethodName {
		w.checks.Add(1)
	}
	if w.frozen.Load() {
		<-ctx.Done()
		return nserr.TimedOut.Errorf("%w", ctx.Err())
	}
	return w.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

// A client with a pool of its own asks its manager about every ten seconds whether it
// lives, and notices within two more that it is frozen.
func TestManagerIsAskedWhetherItLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conn watched
		_, c := newManager(t, func(config *Config) {
			given := config.Peers
			config.Peers = config.ownPool(func(url string) (grpc.ClientConnInterface, io.Closer, error) {
				p := given.Get(url)
				conn.ClientConnInterface = p.Conn()
				return &conn, closing(p.Release), nil
			})
			t.Cleanup(config.Peers.Close) // after the client
		})
		w := connect(t, c)
		conn.checks.Store(0)
		pass(5 * time.Minute)
		if n := conn.checks.Load(); n < 27 || n > 40 { // what else it tells is a sign of life, too
			t.Errorf("the manager was asked %d times in 5 minutes", n)
		}
		if state := w.Connection().GetState(); state != networkservice.State_UP {
			t.Errorf("with a manager that answers the wire is %v", state)
		}
		conn.frozen.Store(true)
		pass(probeManager + 2*time.Second)
		if state := w.Connection().GetState(); state != networkservice.State_DOWN {
			t.Errorf("with a manager that does not answer the wire is %v", state)
		}
		conn.frozen.Store(false) // so that the wire can be closed
	})
}

// closing is a function as io.Closer.
type closing func()

func (f closing) Close() error { f(); return nil }
