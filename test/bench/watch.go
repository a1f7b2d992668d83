// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/rpc"
)

// watchers are many that follow one network service, each over a connection of its own,
// as the nodes of a mesh do.
type watchers struct {
	clients   []api.NetworkServiceEndpointRegistryClient
	conns     []*grpc.ClientConn
	told      chan struct{} // one for each change that one of them is told
	changes   []atomic.Int64
	cancel    context.CancelFunc
	following sync.WaitGroup
}

// watch returns n watchers that have what there is. Close them also on error.
func watch(ctx context.Context, address string, n int) (*watchers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watchers{told: make(chan struct{}, n), changes: make([]atomic.Int64, n), cancel: cancel}
	credentials, _ := rpc.Plaintext()
	for i := range n {
		cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials))
		if err != nil {
			return w, err
		}
		c := api.NewNetworkServiceEndpointRegistryClient(cc)
		w.conns, w.clients = append(w.conns, cc), append(w.clients, c)
		stream, err := c.Find(ctx, &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: ofService(serviceName(0)), Watch: true})
		if err != nil {
			return w, err
		}
		for range perService {
			if _, err := stream.Recv(); err != nil {
				return w, err
			}
		}
		w.following.Go(func() {
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
				w.changes[i].Add(1)
				w.told <- struct{}{}
			}
		})
	}
	return w, nil
}

// hear waits until as many have been told of a change as there are watchers.
func (w *watchers) hear(ctx context.Context) error {
	for range w.changes {
		select {
		case <-w.told:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// exactly fails unless every watcher was told n changes.
func (w *watchers) exactly(n int) error {
	for i := range w.changes {
		if got := w.changes[i].Load(); got != int64(n) {
			return fmt.Errorf("watcher %d was told %d changes of %d", i, got, n)
		}
	}
	return nil
}

func (w *watchers) close() {
	w.cancel()
	go func() { // whoever is telling goes on
		for range w.told {
		}
	}()
	w.following.Wait()
	close(w.told)
	for _, cc := range w.conns {
		_ = cc.Close()
	}
}

// find returns how many endpoints a Find finds.
func find(ctx context.Context, c api.NetworkServiceEndpointRegistryClient, what *api.NetworkServiceEndpoint) (n int, err error) {
	stream, err := c.Find(ctx, &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: what})
	if err != nil {
		return 0, err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
		n++
	}
}
