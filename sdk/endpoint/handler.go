// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
)

// Request is a connection that a handler completes: what Connection holds when
// the last handler returns is the answer.
type Request struct {
	Connection  *networkservice.Connection
	Preferences []*networkservice.Mechanism // in the order of the requester
	Known       bool                        // a refresh, or a change of a connection that is up

	Owner  string // SPIFFE ID that opened the connection, as far as the path proves it
	Caller string // SPIFFE ID of the adjacent forwarder
}

// Handler completes connections. It may be asked for the same connection any
// number of times and must give the same answer again.
type Handler interface {
	// Request completes r.Connection or refuses it. An error of package nserr
	// reaches the client with its reason.
	Request(ctx context.Context, r *Request) error

	// Close frees what Request has taken for the connection. It is called once
	// for a connection that was up, and for one whose first Request failed, so it
	// must bear one that this handler has never completed. The state of c says why:
	// UP when the connection is closed or has expired, RESELECT_REQUESTED when it is
	// closed to be opened anew, here or at another endpoint, and DOWN when it has not
	// come about.
	Close(ctx context.Context, c *networkservice.Connection)
}

// Middleware returns a handler that does its part and calls next.
type Middleware func(next Handler) Handler

// Chain puts middleware together: the first is asked first.
func Chain(ms ...Middleware) Handler {
	var h Handler = Funcs{}
	for i := len(ms) - 1; i >= 0; i-- {
		h = ms[i](h)
	}
	return h
}

// Funcs is a Handler made of functions; nil ones do nothing.
type Funcs struct {
	OnRequest func(context.Context, *Request) error
	OnClose   func(context.Context, *networkservice.Connection)
}

// Request calls OnRequest.
func (f Funcs) Request(ctx context.Context, r *Request) error {
	if f.OnRequest == nil {
		return nil
	}
	return f.OnRequest(ctx, r)
}

// Close calls OnClose.
func (f Funcs) Close(ctx context.Context, c *networkservice.Connection) {
	if f.OnClose != nil {
		f.OnClose(ctx, c)
	}
}
