// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/openvwire/nsm/internal/profile"
	"github.com/openvwire/nsm/sdk/nserr"
)

// profilePiece is how many bytes of a profile go in one message, which writes them as
// text that is a third longer.
const profilePiece = 1 << 20

// profile records what this process spends time or memory on, and sends it. Whoever may
// ask the holder for anything may ask for this, too: its own user (samePeerUser).
func (s *server) profile(c *net.UnixConn, req *request) {
	if err := profile.Check(req.Profile, req.Seconds); err != nil {
		_ = writeMessage(c, failure(err), nil) // before the log has it, which takes no text of any length
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_ = c.SetDeadline(time.Time{}) // a recording has a limit of its own
	s.running.Go(func() {          // nobody records for somebody who has gone
		defer cancel()
		var b [1]byte
		_, _ = c.Read(b[:]) // ends with the connection; whoever asks never writes more
	})
	pid := int32(0)
	if cred, err := peerOf(c); err == nil {
		pid = cred.Pid
	}
	s.cfg.Logger.Info("profile is asked for", "profile", req.Profile, "pid", pid)
	data, err := profile.Record(ctx, req.Profile, req.Seconds)
	if err != nil {
		_ = c.SetWriteDeadline(time.Now().Add(requestTimeout))
		_ = writeMessage(c, failure(err), nil)
		return
	}
	sendPieces(c, data)
}

// sendPieces answers with data, in as many replies as it takes. Whoever does not read
// them has gone, or is given up.
func sendPieces(c *net.UnixConn, data []byte) {
	for more := true; more; {
		n := min(len(data), profilePiece)
		more = n < len(data)
		_ = c.SetWriteDeadline(time.Now().Add(requestTimeout))
		if writeMessage(c, &reply{Data: data[:n], More: more}, nil) != nil {
			return
		}
		data = data[n:]
	}
}

// readReply reads the reply to a request, and of one in pieces all of them. How long the
// first one may take await has said: a recording takes longer than any other answer.
func readReply(ctx context.Context, conn net.Conn, in io.Reader, req *request) (whole reply, err error) {
	for {
		var piece reply
		if err := readMessage(in, &piece); err != nil {
			return reply{}, err
		}
		if len(whole.Data)+len(piece.Data) > profile.MaxBytes {
			return reply{}, nserr.TooLarge.Errorf("the WireGuard holder sends a profile larger than %d MiB", profile.MaxBytes>>20).
				WithFix("record for fewer seconds")
		}
		piece.Data = append(whole.Data, piece.Data...)
		switch {
		case !piece.More:
			return piece, nil
		case req.Op != opProfile:
			return reply{}, nserr.BadAnswer.Errorf("the WireGuard holder answers %q in pieces, as profiles alone are", req.Op)
		case len(piece.Data) == len(whole.Data): // else this might have no end
			return reply{}, nserr.BadAnswer.Errorf("the WireGuard holder sends a profile in pieces with nothing in them")
		}
		whole = piece
		limit(ctx, conn, callTimeout)
	}
}

// Profile returns a profile of the holder's process, of one of the kinds and times that
// nsm.admin.v1 names. It fails with nserr.PeerDown when none runs, and with
// nserr.Unsupported if it is of a time before there were any.
func (c *Client) Profile(ctx context.Context, kind string, seconds int) ([]byte, error) {
	if err := profile.Check(kind, seconds); err != nil {
		return nil, err // here, since to a holder that knows no profiles the whole request is bad
	}
	answer, err := c.call(ctx, &request{Op: opProfile, Profile: kind, Seconds: seconds}, nil)
	if errors.Is(err, nserr.BadRequest) {
		return nil, nserr.Unsupported.Errorf("the WireGuard holder is of an earlier version: %w", err).
			WithFix("end it, if its wires may be made anew for this, by which they lose packets: kill -TERM of the process 'nsm wireguard-holder'")
	}
	if err != nil {
		return nil, err
	}
	return answer.Data, nil
}

// recording is for how long a request is not answered since something is recorded.
func (r *request) recording() time.Duration {
	if r.Op != opProfile {
		return 0
	}
	return time.Duration(max(r.Seconds, profile.UsualSeconds)) * time.Second
}
