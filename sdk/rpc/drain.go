// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"errors"
	"io"
)

// Drain calls f with each message of a stream until it ends, which is no error,
// or f fails. Whoever has f fail cancels the stream's context.
func Drain[T any](stream interface{ Recv() (T, error) }, f func(T) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(message); err != nil {
			return err
		}
	}
}
